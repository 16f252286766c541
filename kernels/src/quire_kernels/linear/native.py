"""The native implementation of `linear`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from quire.api.errors import ShapeError
from quire_kernels.native.bfloat16 import DOT_PRODUCTS, MATRIX_TILES, instructions
from quire_kernels.native.kernel import Kernel
from quire_kernels.native.tensors import C_LONG, C_POINTER


class Arguments(ctypes.Structure):
    """`Linear` of linear.h."""

    _fields_ = [
        *((name, C_POINTER) for name in ("x", "weight", "bias", "residual", "out")),
        *((name, C_LONG) for name in ("rows", "inputs", "outputs", "row_stride")),
        *((name, ctypes.c_int32) for name in ("is_gated", "threads", "with_dots", "with_amx", "streams_out")),
    ]


class NativeLinear:
    """The C function, with the instructions chosen once."""

    def __init__(self, limit: int = MATRIX_TILES) -> None:
        """Bind it; `limit`: the instructions to use at most: VECTORS, DOT_PRODUCTS or MATRIX_TILES."""
        self._kernel = Kernel("linear", Arguments)
        self._instructions = min(instructions(), limit)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
        """See `quire.ops.linear.linear`.

        Raises:
            ShapeError: x or the weight is not bfloat16, or the weight does not fit x and out_features.
            MemoryError: there is none for a copy of the inputs.
        """
        rows, inputs = x.shape
        _check(x, weight, out_features)
        if x.stride(1) != 1:
            x = x.contiguous()
        out = torch.empty((rows, out_features), dtype=x.dtype)
        if rows == 0:
            return out
        arguments = Arguments(
            x.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            None,
            out.data_ptr(),
            rows,
            inputs,
            out_features,
            x.stride(0),
            False,
            torch.get_num_threads(),
            self._instructions >= DOT_PRODUCTS,
            self._instructions == MATRIX_TILES,
        )
        self._kernel(arguments)
        return out


def _check(x: Tensor, weight: Tensor, out_features: int) -> None:
    if x.dtype != torch.bfloat16 or weight.dtype != torch.bfloat16:
        raise ShapeError(
            f"x is {x.dtype}, the weight {weight.dtype}; the native kernel takes bfloat16: use the op's reference"
        )
    panels, steps = weight.shape[:2]
    inputs = x.shape[1]
    if (
        inputs % 2
        or not 32 * (steps - 1) < inputs <= 32 * steps
        or not 32 * (panels - 1) < out_features <= 32 * panels
    ):
        raise ShapeError(
            f"a weight of {panels} panels and {steps} steps of 32 does not serve {out_features} outputs of {inputs} "
            "inputs (an even number): pack it with quire.ops.linear.pack_panels"
        )


linear = NativeLinear()
"""The best that this CPU has."""
