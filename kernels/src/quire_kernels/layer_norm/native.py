"""The native implementations of `layer_norm` and `add_layer_norm`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from quire_kernels.native.kernel import Kernel
from quire_kernels.native.tensors import C_FLOAT, C_INT32, C_LONG, C_POINTER, as_matrix, dtype_code


class Arguments(ctypes.Structure):
    """`LayerNorm` of native.c."""

    _fields_ = [
        *((name, C_POINTER) for name in ("x", "residual", "weight", "bias", "sum", "out")),
        *((name, C_LONG) for name in ("rows", "size", "row_stride", "residual_stride")),
        ("eps", C_FLOAT),
        *((name, C_INT32) for name in ("dtype", "threads")),
    ]


_layer_norm = Kernel("layer_norm", Arguments)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """See `quire.ops.norm.layer_norm`; bfloat16 and float32 on a CPU."""
    rows = as_matrix(x)
    out = torch.empty(rows.shape, dtype=x.dtype)
    _layer_norm(
        Arguments(
            x=rows.data_ptr(),
            weight=weight.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
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


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """See `quire.ops.norm.add_layer_norm`; bfloat16 and float32 on a CPU."""
    rows, others = as_matrix(x), as_matrix(residual)
    total, out = (torch.empty(rows.shape, dtype=x.dtype) for _ in range(2))
    _layer_norm(
        Arguments(
            rows.data_ptr(),
            others.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
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
