"""The reference of the embedding lookup."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def embedding(token_ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of a table: of token ids, or of learned positions.

    Args:
        token_ids: int64 [T], each at least 0 and less than N.
        weight: [N, E], same device.

    Returns:
        A new tensor [T, E] of the weight's dtype; nothing is rounded.

    Raises:
        IndexError: an id is out of range, on a CPU. A GPU cannot raise: there this fails the device's work (an
            assertion of torch's), and kernels fill the row with NaN, which sampling tells for that request alone.
    """
    return F.embedding(token_ids, weight)
