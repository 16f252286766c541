"""Normalisation layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quire.api.protocols import BuildContext
from quire.nn.dtypes import torch_device, torch_dtype

Stream = Tensor | tuple[Tensor, Tensor]
"""What a layer may give to the next one: [T, E], or two tensors of that shape whose sum it is, left to a norm."""


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps)`, in float32, rounded to x's dtype, times the weight.

    Source: Zhang and Sennrich 2019; the order of the roundings is LlamaRMSNorm's in transformers.
    """

    def __init__(self, size: int, eps: float, ctx: BuildContext) -> None:
        """Make an uninitialized weight of `size` values in the model's dtype."""
        super().__init__()
        self.eps = eps
        self.weight = _uninitialized(size, ctx)
        self._op = ctx.ops.rms_norm
        self._add_op = ctx.ops.add_rms_norm

    def forward(self, x: Tensor) -> Tensor:
        """[..., size], e.g. [T, size] or the heads [T, H, size], to a new tensor of the same shape and dtype."""
        return self._op(x, self.weight, self.eps)

    def of_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of `x + residual`, and the sum: the bits of an addition before `forward`, in one pass."""
        normed, total = self._add_op(x, residual, self.weight, self.eps)
        return normed, total

    def of_stream(self, x: Stream) -> tuple[Tensor, Tensor]:
        """The norm of what a layer is given, and that as one tensor; two are added and normed in one pass."""
        return (self(x), x) if isinstance(x, Tensor) else self.of_sum(*x)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


class LayerNorm(nn.Module):
    """Zero mean and unit variance over the last dimension, times the weight, plus the bias.

    Source: Ba et al. 2016; numerics are `torch.nn.functional.layer_norm`'s.
    """

    def __init__(self, size: int, eps: float, ctx: BuildContext, *, bias: bool = True) -> None:
        """Make an uninitialized weight (and bias) of `size` values in the model's dtype."""
        super().__init__()
        self.eps = eps
        self.weight = _uninitialized(size, ctx)
        self.bias = _uninitialized(size, ctx) if bias else None
        self._op = ctx.ops.layer_norm
        self._add_op = ctx.ops.add_layer_norm

    def forward(self, x: Tensor) -> Tensor:
        """[T, size] to [T, size], a new tensor of the same dtype."""
        return self._op(x, self.weight, self.bias, self.eps)

    def of_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of `x + residual`, and the sum: the bits of an addition before `forward`, in one pass."""
        normed, total = self._add_op(x, residual, self.weight, self.bias, self.eps)
        return normed, total

    def of_stream(self, x: Stream) -> tuple[Tensor, Tensor]:
        """The norm of what a layer is given, and that as one tensor; two are added and normed in one pass."""
        return (self(x), x) if isinstance(x, Tensor) else self.of_sum(*x)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"{self.weight.shape[0]}, eps={self.eps}, bias={self.bias is not None}"


def _uninitialized(size: int, ctx: BuildContext) -> nn.Parameter:
    values = torch.empty(size, dtype=torch_dtype(ctx.dtype), device=torch_device(ctx.device))
    return nn.Parameter(values, requires_grad=False)
