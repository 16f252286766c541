"""The native implementation of `layer_norm`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from quire_kernels.native.kernel import Kernel
from quire_kernels.native.tensors import C_FLOAT, C_INT32, C_LONG, C_POINTER, dtype_code


class _LayerNorm(ctypes.Structure):
    """`LayerNorm` of native.c."""

    _fields_ = [
        *((name, C_POINTER) for name in ("x", "weight", "bias", "out")),
        *((name, C_LONG) for name in ("rows", "size", "row_stride")),
        ("eps", C_FLOAT),
        *((name, C_INT32) for name in ("dtype", "threads")),
    ]


_layer_norm = Kernel("layer_norm", _LayerNorm)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """See `quire.ops.norm.layer_norm`; bfloat16 and float32 on a CPU."""
    size = x.shape[-1]
    rows = x if x.dim() == 2 and x.stride(1) == 1 else x.reshape(-1, size).contiguous()
    out = torch.empty(rows.shape, dtype=x.dtype)
    _layer_norm(
        _LayerNorm(
            rows.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            rows.shape[0],
            size,
            rows.stride(0),
            eps,
            dtype_code(x.dtype),
            torch.get_num_threads(),
        )
    )
    return out.view(x.shape)
