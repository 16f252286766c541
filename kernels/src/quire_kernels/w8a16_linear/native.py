"""The native implementation of `w8a16_linear`."""

from __future__ import annotations

from torch import Tensor

from quire_kernels.native.weight_only import WeightOnlyLinear

multiply = WeightOnlyLinear(8)
"""The same with chosen instructions."""


def w8a16_linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    input_order: Tensor | None,
    bias: Tensor | None,
    out_features: int,
) -> Tensor:
    """See `quire.ops.tiled_linear.w8a16_linear`; bfloat16 on a CPU that multiplies it natively."""
    return multiply(x, weight, scales, zeros, input_order, bias, out_features)
