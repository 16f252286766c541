"""`silu_and_mul` in Triton, for CUDA and ROCm."""

from __future__ import annotations

from torch import Tensor

from quire_kernels.activation.triton import activated


def silu_and_mul(x: Tensor) -> Tensor:
    """See `quire.ops.activation.silu_and_mul`; bfloat16, float16 and float32, whatever the strides."""
    return activated(x, "silu", is_gated=True)
