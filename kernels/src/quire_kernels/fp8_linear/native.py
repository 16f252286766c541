"""The native implementation of `fp8_linear`: few rows in one pass over the weights, more rows by chunks."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from quire.api.errors import ShapeError
from quire_kernels.native.kernel import refuse_recording
from quire_kernels.native.tensors import C_LONG, C_POINTER, function

STREAMED_ROWS = 12
"""Up to so many rows, multiplying while the weights stream by beats widening them for torch."""
CHUNK_WEIGHTS = 1 << 20
"""How many weights are widened at a time: 2 MB."""


class _Fp8Linear(ctypes.Structure):
    """The arguments of `quire_fp8_stream` and `quire_fp8_widen`; see native.c."""

    _fields_ = [
        *((name, C_POINTER) for name in ("x", "input_scales", "weight", "scales", "bias", "out")),
        *((name, C_LONG) for name in ("rows", "inputs", "outputs", "stride")),
        *((name, C_LONG) for name in ("block_rows", "block_columns", "first", "last")),
        ("threads", ctypes.c_int32),
    ]


class _Fp8Round(ctypes.Structure):
    """The arguments of `quire_fp8_round`; see native.c."""

    _fields_ = [
        *((name, C_POINTER) for name in ("x", "input_scale", "values", "scales")),
        *((name, C_LONG) for name in ("rows", "inputs", "stride", "group")),
        ("threads", ctypes.c_int32),
    ]


_stream = function("quire_fp8_stream", (ctypes.POINTER(_Fp8Linear),))
_widen = function("quire_fp8_widen", (ctypes.POINTER(_Fp8Linear),))
_round = function("quire_fp8_round", (ctypes.POINTER(_Fp8Round),))


def fp8_linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    input_scale: Tensor | None,
    quantize_input: bool,
    bias: Tensor | None,
    block_rows: int,
    block_columns: int,
) -> Tensor:
    """See `quire.ops.fp8_linear.fp8_linear`; bfloat16 on a CPU.

    Up to STREAMED_ROWS rows sums are float32. With more, products are those of torch in bfloat16, and so are
    weights (and inputs) times their scales where these change along the inputs.
    """
    _check(x, weight, scales, block_rows, block_columns)
    refuse_recording("the native fp8_linear, which takes other ways for more rows,")
    if x.stride(1) != 1:
        x = x.contiguous()
    input_scales = None
    if quantize_input:
        x, input_scales = _round_inputs(x, input_scale, block_columns)
    if x.shape[0] > STREAMED_ROWS:
        return _by_chunks(x, input_scales, weight, scales, bias, block_rows, block_columns)
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype)
    arguments = _arguments(weight, scales, block_rows, block_columns)
    arguments.x, arguments.rows, arguments.stride = x.data_ptr(), x.shape[0], x.stride(0)
    arguments.input_scales = None if input_scales is None else input_scales.data_ptr()
    arguments.bias = None if bias is None else bias.data_ptr()
    arguments.out = out.data_ptr()
    _stream(arguments)
    return out


def _by_chunks(
    x: Tensor,
    input_scales: Tensor | None,
    weight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    block_rows: int,
    block_columns: int,
) -> Tensor:
    size, inputs = weight.shape
    is_scaled_after = scales.shape[1] == 1
    if input_scales is not None and not is_scaled_after:
        x = (x * input_scales.repeat_interleave(block_columns, dim=1)[:, :inputs]).to(x.dtype)
    step = max(1, CHUNK_WEIGHTS // max(1, inputs))
    buffer = torch.empty((min(step, size), inputs), dtype=x.dtype)
    out = torch.empty((x.shape[0], size), dtype=x.dtype)
    arguments = _arguments(weight, scales, block_rows, block_columns)
    arguments.out = buffer.data_ptr()
    if is_scaled_after:
        arguments.scales = None
        by = scales.flatten().repeat_interleave(block_rows)[:size]
    for start in range(0, size, step):
        rows = slice(start, min(start + step, size))
        arguments.first, arguments.last = rows.start, rows.stop
        _widen(arguments)
        product = F.linear(x, buffer[: rows.stop - start])
        if is_scaled_after:
            product = product * by[rows]
            if input_scales is not None:
                product *= input_scales
        out[:, rows] = product if bias is None else product + bias[rows]
    return out


def _round_inputs(x: Tensor, input_scale: Tensor | None, group: int) -> tuple[Tensor, Tensor]:
    """What `quantize_inputs` of the reference gives, the float8 values as bfloat16; scales [T, groups]."""
    rows, inputs = x.shape
    values = torch.empty((rows, inputs), dtype=x.dtype)
    scales = torch.empty((rows, -(-inputs // group)))
    given = None if input_scale is None else input_scale.data_ptr()
    threads = torch.get_num_threads()
    _round(
        _Fp8Round(
            x.data_ptr(),
            given,
            values.data_ptr(),
            scales.data_ptr(),
            rows,
            inputs,
            x.stride(0),
            group,
            threads,
        )
    )
    return values, scales


def _arguments(weight: Tensor, scales: Tensor, block_rows: int, block_columns: int) -> _Fp8Linear:
    return _Fp8Linear(
        weight=weight.data_ptr(),
        scales=scales.data_ptr(),
        inputs=weight.shape[1],
        outputs=weight.shape[0],
        block_rows=block_rows,
        block_columns=block_columns,
        threads=torch.get_num_threads(),
    )


def _check(x: Tensor, weight: Tensor, scales: Tensor, block_rows: int, block_columns: int) -> None:
    size, inputs = weight.shape
    blocks = (-(-size // block_rows), -(-inputs // block_columns))
    if x.dtype != torch.bfloat16:
        raise ShapeError(f"x is {x.dtype}; the native kernel takes torch.bfloat16: use the op's reference")
    if x.shape[1] != inputs or tuple(scales.shape) != blocks:
        raise ShapeError(
            f"x {list(x.shape)} and scales {list(scales.shape)} for a weight {list(weight.shape)} in blocks of "
            f"{block_rows} x {block_columns}: x of {inputs} inputs and scales {list(blocks)} are needed"
        )
