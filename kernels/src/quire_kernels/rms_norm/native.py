"""The native implementations of `rms_norm` and `add_rms_norm`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from quire_kernels.native.kernel import Kernel
from quire_kernels.native.tensors import C_FLOAT, C_INT32, C_LONG, C_POINTER, as_matrix, dtype_code


class Arguments(ctypes.Structure):
    """`RmsNorm` of native.c."""

    _fields_ = [
        *((name, C_POINTER) for name in ("x", "residual", "weight", "sum", "out")),
        *((name, C_LONG) for name in ("rows", "size", "row_stride", "residual_stride")),
        ("eps", C_FLOAT),
        *((name, C_INT32) for name in ("dtype", "threads")),
    ]


_rms_norm = Kernel("rms_norm", Arguments)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `quire.ops.norm.rms_norm`; bfloat16 and float32 on a CPU."""
    rows = as_matrix(x)
    out = torch.empty(rows.shape, dtype=x.dtype)
    _rms_norm(
        Arguments(
            x=rows.data_ptr(),
            weight=weight.data_ptr(),
            out=out.data_ptr(),
            rows=rows.shape[0],
            size=rows.shape[1],
            row_stride=rows.stride(0),
            eps=eps,
            dtype=dtype_code(x.dtype),
            threads=torch.get_num_threads(),
        )
    )
    return out.view(x.shape)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `quire.ops.norm.add_rms_norm`; bfloat16 and float32 on a CPU."""
    rows, others = as_matrix(x), as_matrix(residual)
    total, out = (torch.empty(rows.shape, dtype=x.dtype) for _ in range(2))
    _rms_norm(
        Arguments(
            rows.data_ptr(),
            others.data_ptr(),
            weight.data_ptr(),
            total.data_ptr(),
            out.data_ptr(),
            *rows.shape,
            rows.stride(0),
            others.stride(0),
            eps,
            dtype_code(x.dtype),
            torch.get_num_threads(),
        )
    )
    return out.view(x.shape), total.view(x.shape)
