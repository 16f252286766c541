"""What the native linears with integer weights and 16-bit inputs share: the call of their C function."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from quire.api.errors import ShapeError
from quire_kernels.native.bfloat16 import DOT_PRODUCTS, MATRIX_TILES, instructions
from quire_kernels.native.kernel import Kernel
from quire_kernels.native.tensors import C_LONG, C_POINTER

_SCALE_CODES = {torch.bfloat16: 0, torch.float32: 1, torch.float16: 2}


class _Arguments(ctypes.Structure):
    """`WeightOnly` of weight_only.h."""

    _fields_ = [
        *((name, C_POINTER) for name in ("x", "weight", "scales", "zeros", "input_order", "bias", "out")),
        *((name, C_LONG) for name in ("rows", "inputs", "outputs", "groups", "row_stride")),
        *((name, ctypes.c_int32) for name in ("scale_dtype", "threads", "with_dots", "with_amx")),
    ]


class WeightOnlyLinear:
    """`w4a16_linear` or `w8a16_linear` of the native library, with the instructions chosen once."""

    def __init__(self, bits: int, limit: int = MATRIX_TILES) -> None:
        """Bind the C function.

        Args:
            bits: 4 or 8.
            limit: the instructions to use at most: VECTORS, DOT_PRODUCTS or MATRIX_TILES.
        """
        self._kernel = Kernel(f"w{bits}a16_linear", _Arguments)
        self.bits = bits
        self._instructions = min(instructions(), limit)

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        input_order: Tensor | None,
        bias: Tensor | None,
        out_features: int,
    ) -> Tensor:
        """See `quire.ops.tiled_linear`.

        Raises:
            TypeError: x is not bfloat16 (the reference takes other dtypes).
            ShapeError: the weight does not fit x and out_features.
            MemoryError: there is none for a copy of the inputs.
        """
        rows, inputs = x.shape
        self._check(x.dtype, weight, inputs, out_features)
        if x.stride(1) != 1:
            x = x.contiguous()
        out = torch.empty((rows, out_features), dtype=x.dtype)
        if rows == 0:
            return out
        arguments = _Arguments(
            x.data_ptr(),
            weight.data_ptr(),
            scales.data_ptr(),
            None if zeros is None else zeros.data_ptr(),
            None if input_order is None else input_order.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            rows,
            inputs,
            out_features,
            scales.shape[1],
            x.stride(0),
            _SCALE_CODES[scales.dtype],
            torch.get_num_threads(),
            self._instructions >= DOT_PRODUCTS,
            self._instructions == MATRIX_TILES,
        )
        self._kernel(arguments)
        return out

    def _check(self, dtype: torch.dtype, weight: Tensor, inputs: int, out_features: int) -> None:
        if dtype != torch.bfloat16:
            raise TypeError(f"native kernels take bfloat16 here, not {dtype}: use the op's reference")
        tiles, words, _ = weight.shape
        per_word = 32 // self.bits
        if words * per_word != inputs or not 16 * (tiles - 1) < out_features <= 16 * tiles:
            raise ShapeError(
                f"weight {list(weight.shape)} is of {16 * tiles} outputs and {per_word * words} inputs; "
                f"x has {inputs}, out_features is {out_features}: pack the weight with pack_tiles"
            )
