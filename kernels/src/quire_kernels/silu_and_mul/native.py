"""The native implementation of `silu_and_mul`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from quire_kernels.native.kernel import Kernel
from quire_kernels.native.tensors import C_INT32, C_LONG, C_POINTER, dtype_code


class _SiluAndMul(ctypes.Structure):
    """`SiluAndMul` of native.c."""

    _fields_ = [
        *((name, C_POINTER) for name in ("x", "out")),
        *((name, C_LONG) for name in ("rows", "size")),
        *((name, C_INT32) for name in ("dtype", "threads")),
    ]


_silu_and_mul = Kernel("silu_and_mul", _SiluAndMul)


def silu_and_mul(x: Tensor) -> Tensor:
    """See `quire.ops.activation.silu_and_mul`; bfloat16 and float32 on a CPU."""
    x = x.contiguous()
    *leading, width = x.shape
    out = torch.empty((*leading, width // 2), dtype=x.dtype)
    rows = x.numel() // width if width else 0
    _silu_and_mul(
        _SiluAndMul(
            x.data_ptr(), out.data_ptr(), rows, width // 2, dtype_code(x.dtype), torch.get_num_threads()
        )
    )
    return out
