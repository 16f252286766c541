"""`rms_norm` and `add_rms_norm` in Triton, for CUDA and ROCm."""

from __future__ import annotations

from torch import Tensor

from quire_kernels.rms_norm.triton_kernel import rms_norm_rows
from quire_kernels.triton.norms import normed_rows


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `quire.ops.norm.rms_norm`; bfloat16, float16 and float32, whatever the strides."""
    return normed_rows(rms_norm_rows, x, (weight,), eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `quire.ops.norm.add_rms_norm`; bfloat16, float16 and float32, whatever the strides."""
    total = x.new_empty(x.shape)
    return normed_rows(rms_norm_rows, x, (weight,), eps, residual, total), total
