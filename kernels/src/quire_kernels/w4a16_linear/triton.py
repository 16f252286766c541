"""Linear layers with 4-bit weights in Triton, for CUDA and ROCm."""

from __future__ import annotations

from torch import Tensor

from quire_kernels.triton.weight_only import weight_only_linear


def w4a16_linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    input_order: Tensor | None,
    bias: Tensor | None,
    out_features: int,
) -> Tensor:
    """See `quire.ops.tiled_linear`; x is bfloat16 or float16."""
    return weight_only_linear(x, weight, scales, zeros, input_order, bias, out_features, bits=4)
