"""The native implementation of `w8a8_linear`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from quire.api.errors import ShapeError
from quire_kernels.native.kernel import Kernel
from quire_kernels.native.tensors import C_LONG, C_POINTER, dtype_code
from quire_kernels.w8a8_linear.support import instructions

MAX_INPUTS = (1 << 17) - 1
"""Up to so many products of two 8-bit integers are exact in 32 bits."""


class _W8A8Linear(ctypes.Structure):
    """`W8A8Linear` of native.c."""

    _fields_ = [
        *((name, C_POINTER) for name in ("x", "weight", "scales", "input_scale", "bias", "out")),
        *((name, C_LONG) for name in ("rows", "inputs", "outputs", "stride")),
        *((name, ctypes.c_int32) for name in ("dtype", "threads", "instructions")),
    ]


_multiply = Kernel("w8a8_linear", _W8A8Linear)
_INSTRUCTIONS = instructions()


def w8a8_linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    input_scale: Tensor | None,
    bias: Tensor | None,
    out_features: int,
) -> Tensor:
    """See `quire.ops.tiled_linear.w8a8_linear`; bfloat16 and float32 on a CPU, up to MAX_INPUTS inputs."""
    return multiply(x, weight, scales, input_scale, bias, out_features, _INSTRUCTIONS)


def multiply(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    input_scale: Tensor | None,
    bias: Tensor | None,
    out_features: int,
    instructions: int,
) -> Tensor:
    """The same with chosen instructions, of those that `support.instructions` names or lower."""
    rows, inputs = x.shape
    _check(weight, inputs, out_features)
    if x.stride(1) != 1:
        x = x.contiguous()
    out = torch.empty((rows, out_features), dtype=x.dtype)
    _multiply(
        _W8A8Linear(
            x.data_ptr(),
            weight.data_ptr(),
            scales.data_ptr(),
            None if input_scale is None else input_scale.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            rows,
            inputs,
            out_features,
            x.stride(0),
            dtype_code(x.dtype),
            torch.get_num_threads(),
            instructions,
        )
    )
    return out


def _check(weight: Tensor, inputs: int, out_features: int) -> None:
    tiles, words, _ = weight.shape
    if words * 4 != inputs or not 16 * (tiles - 1) < out_features <= 16 * tiles:
        raise ShapeError(
            f"weight {list(weight.shape)} is of {16 * tiles} outputs and {4 * words} inputs; "
            f"x has {inputs}, out_features is {out_features}: pack the weight with pack_tiles"
        )
    if inputs > MAX_INPUTS:
        raise ShapeError(f"{inputs} inputs are more than {MAX_INPUTS}: use the op's reference")
