"""What models ask of torch itself between the ops, by kernels that can be replayed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from quire_kernels.native.kernel import Kernel
from quire_kernels.native.tensors import C_INT32, C_LONG, C_POINTER, dtype_code


class _Gather(ctypes.Structure):
    """`Gather` of torch_calls.c."""

    _fields_ = [
        *((name, C_POINTER) for name in ("table", "index", "out")),
        *((name, C_LONG) for name in ("rows", "row_bytes")),
        ("threads", C_INT32),
    ]


class _Combine(ctypes.Structure):
    """`Combine` of torch_calls.c."""

    _fields_ = [
        *((name, C_POINTER) for name in ("a", "b", "out")),
        *((name, C_LONG) for name in ("rows", "size", "a_stride", "b_stride")),
        *((name, C_INT32) for name in ("operation", "dtype", "threads")),
    ]


_gather = Kernel("gather", _Gather)
_combine = Kernel("combine", _Combine)
_ADD, _MULTIPLY = 0, 1


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
    pointers = (table.data_ptr(), index.data_ptr(), out.data_ptr())
    notes.run(_gather, _Gather(*pointers, len(index), row_bytes, torch.get_num_threads()))
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
        """`a + b` or `a * b` of two tensors of one shape."""
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


def _rows(notes: Notes, x: Tensor) -> Tensor:
    """A tensor as rows [T, ...] that are contiguous each."""
    if x.dim() == 2 and x.stride(1) == 1:
        return x
    if not x.is_contiguous() or not x.dim():
        notes.refuse(f"a sum or product of {_text(x)}, strides {x.stride()}")
    return x.view(len(x), -1)


def _text(x: object) -> str:
    return f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else repr(x)


_aten = torch.ops.aten
HANDLERS: Final[Mapping[object, Callable[..., Tensor]]] = MappingProxyType(
    {
        _aten.embedding.default: _embedding,
        _aten.index_select.default: _index_select,
        _aten.index.Tensor: _index,
        _aten.add.Tensor: _combination(_ADD),
        _aten.mul.Tensor: _combination(_MULTIPLY),
    }
)
"""By torch's name of an operation, what does it: called with a Recorder and the operation's arguments."""
