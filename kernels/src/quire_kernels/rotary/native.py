"""The native implementation of `rotary`."""

from __future__ import annotations

import torch
from torch import Tensor

from quire_kernels.native.tensors import C_INT, C_LONG, C_POINTER, dtype_code, function

_rotary = function("quire_rotary", (C_INT, *[C_POINTER] * 4, *[C_LONG] * 8, C_INT, C_INT))


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """See `quire.ops.rotary.rotary`; bfloat16 and float32 on a CPU."""
    cos, sin = cos.contiguous(), sin.contiguous()
    num_tokens, query_heads, _ = query.shape
    query_strides, key_strides = query.stride(), key.stride()
    _rotary(
        dtype_code(query.dtype),
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
        torch.get_num_threads(),
    )
    return query, key
