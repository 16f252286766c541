"""What the callers of native functions share."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import cast

import torch

from quire_kernels.native.library import native_library

C_INT32, C_LONG, C_FLOAT, C_POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p

_CODES = {torch.bfloat16: 0, torch.float32: 1}


def function(name: str, arguments: Sequence[type]) -> Callable[..., None]:
    """A function of the library, with the types of its arguments."""
    found = getattr(native_library(), name)
    found.argtypes, found.restype = list(arguments), None
    return cast("Callable[..., None]", found)


def dtype_code(dtype: torch.dtype) -> int:
    """How the C sources number a dtype.

    Raises:
        TypeError: they do not know it.
    """
    if dtype not in _CODES:
        raise TypeError(f"native kernels take bfloat16 and float32, not {dtype}")
    return _CODES[dtype]


def as_matrix(x: torch.Tensor) -> torch.Tensor:
    """Rows [..., E] as [T, E], contiguous in E: a view of a matrix whose rows lie apart; other gaps are copied."""
    return x if x.dim() == 2 and x.stride(1) == 1 else x.reshape(-1, x.shape[-1]).contiguous()
