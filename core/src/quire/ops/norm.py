"""References of the normalizations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm: `x / sqrt(mean(x^2) + eps) * weight` over the last dimension.

    Computed in float32 whatever the dtype (float64 too; torch widens 16-bit input itself), rounded to
    x's dtype, then multiplied by the weight in it: the roundings of Hugging Face's LlamaRMSNorm.

    Args:
        x: [..., E].
        weight: [E], x's dtype and device.
        eps: added to the mean square.

    Returns:
        A new tensor like x.

    Source: Zhang and Sennrich 2019.
    """
    if x.dtype == torch.float64:
        return torch.rms_norm(x.to(torch.float32), weight.shape, None, eps).to(torch.float64).mul_(weight)
    return torch.rms_norm(x, weight.shape, None, eps).mul_(weight)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Layer norm over the last dimension, statistics in float32 or wider.

    Args:
        x: [..., E].
        weight: [E], x's dtype and device.
        bias: likewise, or None.
        eps: added to the variance.

    Returns:
        A new tensor like x.

    Source: Ba, Kiros and Hinton 2016.
    """
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`rms_norm` of a sum, and the sum: what a layer adds to its stream, and the norm that comes next, in one pass.

    The sum is rounded to x's dtype before it is normed: the same bits as of the two operations.

    Args:
        x: [..., E].
        residual: x's shape, dtype and device.
        weight: [E], likewise x's dtype and device.
        eps: added to the mean square.

    Returns:
        The norm and `x + residual`, new tensors like x.

    Source: Zhang and Sennrich 2019.
    """
    total = x + residual
    return rms_norm(total, weight, eps), total


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """`layer_norm` of a sum, and the sum; the sum is rounded to x's dtype before it is normed.

    Args:
        x: [..., E].
        residual: x's shape, dtype and device.
        weight: [E], likewise x's dtype and device.
        bias: likewise, or None.
        eps: added to the variance.

    Returns:
        The norm and `x + residual`, new tensors like x.

    Source: Ba, Kiros and Hinton 2016.
    """
    total = x + residual
    return layer_norm(total, weight, bias, eps), total
