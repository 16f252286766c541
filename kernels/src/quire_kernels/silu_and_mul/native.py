"""The native implementation of `silu_and_mul`."""

from __future__ import annotations

import torch
from torch import Tensor

from quire_kernels.native.tensors import C_INT, C_LONG, C_POINTER, dtype_code, function

_silu_and_mul = function("quire_silu_and_mul", (C_INT, C_POINTER, C_POINTER, C_LONG, C_LONG, C_INT))


def silu_and_mul(x: Tensor) -> Tensor:
    """See `quire.ops.activation.silu_and_mul`; bfloat16 and float32 on a CPU."""
    x = x.contiguous()
    *leading, width = x.shape
    out = torch.empty((*leading, width // 2), dtype=x.dtype)
    rows = x.numel() // width if width else 0
    _silu_and_mul(
        dtype_code(x.dtype), x.data_ptr(), out.data_ptr(), rows, width // 2, torch.get_num_threads()
    )
    return out
