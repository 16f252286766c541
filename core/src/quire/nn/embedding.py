"""Token and position embeddings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class TokenEmbedding(nn.Module):
    """A table of vectors, read by index: token ids, or learned positions.

    An LM head can be tied to it; it then shares `weight`.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        look_up: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        """Make an uninitialized table; models make it through `BuildContext.embedding`. `look_up` is the op."""
        super().__init__()
        self._look_up = look_up
        table = torch.empty(num_embeddings, embedding_dim, dtype=dtype, device=device)
        self.weight = nn.Parameter(table, requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [T], each in [0, num_embeddings), to [T, embedding_dim]; see the op `embedding` for others."""
        return self._look_up(ids, self.weight)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"
