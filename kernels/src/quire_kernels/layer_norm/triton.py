"""`layer_norm` and `add_layer_norm` in Triton, for CUDA and ROCm."""

from __future__ import annotations

from torch import Tensor

from quire_kernels.layer_norm.triton_kernel import layer_norm_rows
from quire_kernels.triton.norms import normed_rows


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """See `quire.ops.norm.layer_norm`; bfloat16, float16 and float32, whatever the strides."""
    return normed_rows(layer_norm_rows, x, (weight, bias), eps)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """See `quire.ops.norm.add_layer_norm`; bfloat16, float16 and float32, whatever the strides."""
    total = x.new_empty(x.shape)
    return normed_rows(layer_norm_rows, x, (weight, bias), eps, residual, total), total
