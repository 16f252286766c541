"""The native implementation of `rotary`."""

from __future__ import annotations

import torch
from torch import Tensor

from quire_kernels.native.tensors import C_INT, C_LONG, C_POINTER, dtype_code, function

_rotary = function(
    "quire_rotary",
    (C_INT, C_POINTER, C_POINTER, C_POINTER, C_LONG, C_LONG, C_LONG, C_LONG, C_LONG, C_INT, C_INT),
)


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """See `quire.ops.rotary.rotary`; bfloat16 and float32 on a CPU."""
    cos, sin = cos.contiguous(), sin.contiguous()
    code, tokens, half = dtype_code(query.dtype), query.shape[0], cos.shape[-1]
    for x in (query, key):
        _rotary(
            code,
            x.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            tokens,
            x.shape[1],
            x.stride(0),
            x.stride(1),
            half,
            interleaved,
            torch.get_num_threads(),
        )
    return query, key
