"""What models ask of torch itself between the ops, by kernels that can be replayed."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from quire_kernels.embedding.native import Gather, gather
from quire_kernels.native.kernel import Kernel
from quire_kernels.native.tensors import C_FLOAT, C_INT32, C_LONG, C_POINTER, dtype_code


class _Combine(ctypes.Structure):
    """`Combine` of torch_calls.c."""

    _fields_ = [
        *((name, C_POINTER) for name in ("a", "b", "out")),
        *((name, C_LONG) for name in ("rows", "size", "a_stride", "b_stride")),
        *((name, C_INT32) for name in ("operation", "dtype", "threads")),
    ]


class _CopyRows(ctypes.Structure):
    """`CopyRows` of torch_calls.c."""

    _fields_ = [
        *((name, C_POINTER) for name in ("x", "out")),
        *((name, C_LONG) for name in ("rows", "row_bytes", "x_stride", "out_stride")),
        ("threads", C_INT32),
    ]


class _Adjust(ctypes.Structure):
    """`Adjust` of torch_calls.c."""

    _fields_ = [
        *((name, C_POINTER) for name in ("x", "out")),
        *((name, C_LONG) for name in ("rows", "size", "x_stride", "out_stride")),
        *((name, C_FLOAT) for name in ("factor", "low", "high")),
        *((name, C_INT32) for name in ("dtype", "threads")),
    ]


_combine = Kernel("combine", _Combine)
_copy_rows = Kernel("copy_rows", _CopyRows)
_adjust = Kernel("adjust", _Adjust)
ADD, MULTIPLY = 0, 1
_ANY_NUMBER = 2**62


class Notes(Protocol):
    """What a Recorder gives to handlers."""

    def run(self, kernel: Kernel, arguments: ctypes.Structure) -> None:
        """Note a call, and make it."""
        ...

    def refuse(self, what: str) -> None:
        """Raise: it cannot be recorded."""
        ...

    def keep(self, tensor: Tensor) -> Tensor:
        """Make a new tensor's memory a buffer."""
        ...

    def find(self, address: int) -> int | None:
        """The number of the buffer that an address lies in, if it lies in one."""
        ...


def _take_rows(notes: Notes, table: Tensor, index: Tensor) -> Tensor:
    """`table[index]`, of a table [N, ...] and int64 [T]."""
    if (
        index.dim() != 1
        or index.dtype != torch.int64
        or not (table.is_contiguous() and index.is_contiguous())
    ):
        notes.refuse(
            f"taking rows {index.dtype} {list(index.shape)} of {list(table.shape)}, strides {table.stride()}"
        )
    out = notes.keep(torch.empty((len(index), *table.shape[1:]), dtype=table.dtype))
    row_bytes = table[0].nbytes
    # a buffer has as many rows as the step asks for, and its indices are the engine's own
    table_rows = len(table) if notes.find(table.data_ptr()) is None else _ANY_NUMBER
    pointers = (table.data_ptr(), index.data_ptr(), out.data_ptr())
    notes.run(gather, Gather(*pointers, len(index), row_bytes, table_rows, torch.get_num_threads()))
    return out


def _embedding(notes: Notes, weight: Tensor, indices: Tensor, *_: Any, **__: Any) -> Tensor:
    return _take_rows(notes, weight, indices)


def _index_select(notes: Notes, table: Tensor, dim: int, index: Tensor) -> Tensor:
    if dim != 0:
        notes.refuse(f"index_select along dimension {dim}")
    return _take_rows(notes, table, index)


def _index(notes: Notes, table: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    if len(indices) != 1 or indices[0] is None:
        notes.refuse("indexing by more than one tensor")
    return _take_rows(notes, table, indices[0])  # type: ignore[arg-type]  # refuse raises


def _combination(operation: int) -> Callable[..., Tensor]:
    def combined(notes: Notes, a: Tensor, b: object, *, alpha: float = 1) -> Tensor:
        """`a + b` or `a * b` of two tensors of one shape, or `a * b` of a tensor and a number."""
        if operation == MULTIPLY and isinstance(b, int | float):
            out = notes.keep(torch.empty(a.shape, dtype=a.dtype))
            _adjusted(notes, a, out, factor=b)
            return out
        if not isinstance(b, Tensor) or a.shape != b.shape or a.dtype != b.dtype or alpha != 1:
            notes.refuse(f"a sum or product of {_text(a)} and {_text(b)}, times {alpha}")
        rows, others = _rows(notes, a), _rows(notes, b)  # type: ignore[arg-type]  # refuse raises
        out = notes.keep(torch.empty(a.shape, dtype=a.dtype))
        arguments = _Combine(
            rows.data_ptr(),
            others.data_ptr(),
            out.data_ptr(),
            *rows.shape,
            rows.stride(0),
            others.stride(0),
            operation,
            dtype_code(a.dtype),
            torch.get_num_threads(),
        )
        notes.run(_combine, arguments)
        return out

    return combined


def _clamp_in_place(notes: Notes, x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """`x.clamp_(low, high)`; torch rounds the limits to x's dtype first, which gives the same values."""
    _adjusted(notes, x, x, low=-math.inf if low is None else low, high=math.inf if high is None else high)
    return x


def _adjusted(
    notes: Notes, x: Tensor, out: Tensor, factor: float = 1.0, low: float = -math.inf, high: float = math.inf
) -> None:
    """Write `x * factor`, no less than low and no more than high, to out; NaN stays."""
    rows, results = _rows(notes, x), _rows(notes, out)
    strides = (rows.stride(0), results.stride(0))
    numbers = (factor, low, high, dtype_code(x.dtype), torch.get_num_threads())
    notes.run(_adjust, _Adjust(rows.data_ptr(), results.data_ptr(), *rows.shape, *strides, *numbers))


def _reshape(notes: Notes, x: Tensor, shape: Sequence[int]) -> Tensor:
    """A view, or of heads of a fused product a copy."""
    try:
        return x.view(shape)
    except RuntimeError:
        return _copied(notes, x).view(shape)


def _contiguous(notes: Notes, x: Tensor, **options: object) -> Tensor:
    if options:
        notes.refuse(f"a copy with {options}")
    return x if x.is_contiguous() else _copied(notes, x)


def _copied(notes: Notes, x: Tensor) -> Tensor:
    out = notes.keep(torch.empty(x.shape, dtype=x.dtype))
    _copy(notes, x, out)
    return out


def _cat(notes: Notes, parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Columns of a product beside each other: parts are [T, N]."""
    dtypes = {part.dtype for part in parts}
    if dim not in (1, -1) or len(dtypes) > 1 or any(part.dim() != 2 for part in parts):
        notes.refuse(f"cat along {dim} of {', '.join(map(_text, parts))}")
    sizes = [part.shape[1] for part in parts]
    out = notes.keep(torch.empty((len(parts[0]), sum(sizes)), dtype=parts[0].dtype))
    for part, columns in zip(parts, torch.split(out, sizes, dim=1), strict=True):
        _copy(notes, part, columns)
    return out


def _copy(notes: Notes, x: Tensor, out: Tensor) -> None:
    """Copy rows [T, ...] that are contiguous each."""
    if not x.dim() or not x[0].is_contiguous():
        notes.refuse(f"a copy of {_text(x)}, strides {x.stride()},")
    strides = (x.stride(0) * x.itemsize, out.stride(0) * x.itemsize)
    sizes = (len(x), x[0].nbytes, *strides, torch.get_num_threads())
    notes.run(_copy_rows, _CopyRows(x.data_ptr(), out.data_ptr(), *sizes))


def _rows(notes: Notes, x: Tensor) -> Tensor:
    """A tensor as rows [T, ...] that are contiguous each."""
    if x.dim() == 2 and x.stride(1) == 1:
        return x
    if not x.is_contiguous() or not x.dim():
        notes.refuse(f"arithmetic on {_text(x)}, strides {x.stride()},")
    return x.view(len(x), -1)


def _text(x: object) -> str:
    return f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else repr(x)


_aten = torch.ops.aten
HANDLERS: Final[Mapping[object, Callable[..., Tensor]]] = MappingProxyType(
    {
        _aten.embedding.default: _embedding,
        _aten.index_select.default: _index_select,
        _aten.index.Tensor: _index,
        _aten.add.Tensor: _combination(ADD),
        _aten.mul.Tensor: _combination(MULTIPLY),
        _aten.clamp_.default: _clamp_in_place,
        _aten.reshape.default: _reshape,
        _aten.contiguous.default: _contiguous,
        _aten.cat.default: _cat,
    }
)
"""By torch's name of an operation, what does it: called with a Recorder and the operation's arguments."""
