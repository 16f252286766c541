"""The linear layer over a weight in panels, and the layout: what a kernel reads in the order in which it lies."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from quire.ops.weight_memory import empty_weight

PANEL = 32
"""Output features of a panel."""
STEP = 32
"""Input features of a panel's step."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """A linear layer: y = x @ w.T + bias, sums in float32 or wider, rounded once.

    Args:
        x: [T, K], any floating dtype, K even.
        weight: w in panels, x's dtype; see `pack_panels`.
        bias: [N] in x's dtype, or None.
        out_features: N.

    Returns:
        [T, N], x's dtype, a new tensor.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    matrix = unpack_panels(weight, out_features, x.shape[1]).to(wide)
    return F.linear(x.to(wide), matrix, None if bias is None else bias.to(wide)).to(x.dtype)


def pack_panels(weight: Tensor) -> Tensor:
    """Lay out a weight [N, K] in panels: [ceil(N / 32), ceil(K / 32), 2, 16, 16, 2], filled up with zeros.

    A panel is 32 output features, a step 32 inputs of them: two halves of 16 outputs, each 16 pairs of inputs
    with 16 outputs a pair. A half is what one AMX instruction multiplies with.
    """
    size, inputs = weight.shape
    panels, steps = -(-size // PANEL), -(-inputs // STEP)
    if size % PANEL or inputs % STEP:
        weight = F.pad(weight, (0, steps * STEP - inputs, 0, panels * PANEL - size))
    parts = weight.reshape(panels, 2, PANEL // 2, steps, STEP // 2, 2)
    parts = parts.permute(0, 3, 1, 4, 2, 5)
    return empty_weight(parts.shape, parts.dtype, parts.device).copy_(parts)


def unpack_panels(weight: Tensor, out_features: int, in_features: int) -> Tensor:
    """The weight [N, K] that `pack_panels` laid out."""
    panels, steps = weight.shape[:2]
    matrix = weight.permute(0, 2, 4, 1, 3, 5).reshape(panels * PANEL, steps * STEP)
    return matrix[:out_features, :in_features]
