"""The native implementation of `rotary`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from quire_kernels.native.kernel import Kernel
from quire_kernels.native.tensors import C_INT32, C_LONG, C_POINTER, dtype_code


class _Rotary(ctypes.Structure):
    """`Rotary` of native.c."""

    _fields_ = [
        *((name, C_POINTER) for name in ("query", "key", "cos", "sin")),
        *((name, C_LONG) for name in ("rows", "query_heads", "query_token_stride", "query_head_stride")),
        *((name, C_LONG) for name in ("key_heads", "key_token_stride", "key_head_stride", "half")),
        *((name, C_INT32) for name in ("interleaved", "dtype", "threads")),
    ]


_rotary = Kernel("rotary", _Rotary)


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """See `quire.ops.rotary.rotary`; bfloat16 and float32 on a CPU."""
    cos, sin = cos.contiguous(), sin.contiguous()
    num_tokens, query_heads, _ = query.shape
    query_strides, key_strides = query.stride(), key.stride()
    _rotary(
        _Rotary(
            query.data_ptr(),
            key.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            num_tokens,
            query_heads,
            query_strides[0],
            query_strides[1],
            key.shape[1],
            key_strides[0],
            key_strides[1],
            cos.shape[1],
            interleaved,
            dtype_code(query.dtype),
            torch.get_num_threads(),
        )
    )
    return query, key
