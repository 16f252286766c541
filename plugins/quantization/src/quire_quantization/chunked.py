"""Products with weights that are dequantized some outputs at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_WEIGHTS = 1 << 20
"""How many weights are dequantized at a time: 4 MB in float32."""


def wide_dtype(x: Tensor) -> torch.dtype:
    """What references multiply in: float64 where x is, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def multiply_in_chunks(
    x: Tensor,
    weights: Callable[[slice], Tensor],
    out_features: int,
    bias: Tensor | None,
    *,
    unit: int = 1,
    chunk_weights: int = CHUNK_WEIGHTS,
) -> Tensor:
    """A linear layer, y = x @ weights.T + bias, in `wide_dtype`.

    Args:
        x: [T, K], any floating dtype.
        weights: those of some outputs, [rows, K] in `wide_dtype(x)`.
        out_features: N.
        bias: [N] or None.
        unit: outputs that lie together: slices begin with one of them, and end with one or with N.
        chunk_weights: how many are asked for at a time, at least `unit` outputs'.

    Returns:
        [T, N], x's dtype, a new tensor.
    """
    values = x.to(wide_dtype(x))
    out = x.new_empty(x.shape[0], out_features)
    step = max(1, chunk_weights // max(1, unit * x.shape[1])) * unit
    for first in range(0, out_features, step):
        rows = slice(first, min(first + step, out_features))
        out[:, rows] = F.linear(values, weights(rows), None if bias is None else bias[rows].to(values.dtype))
    return out
