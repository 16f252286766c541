"""The native implementation of `rms_norm`."""

from __future__ import annotations

import torch
from torch import Tensor

from quire_kernels.native.tensors import C_FLOAT, C_INT, C_LONG, C_POINTER, dtype_code, function

_rms_norm = function(
    "quire_rms_norm", (C_INT, C_POINTER, C_POINTER, C_POINTER, C_LONG, C_LONG, C_LONG, C_FLOAT, C_INT)
)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `quire.ops.norm.rms_norm`; bfloat16 and float32 on a CPU."""
    size = x.shape[-1]
    rows = x if x.dim() == 2 and x.stride(1) == 1 else x.reshape(-1, size).contiguous()
    out = torch.empty(rows.shape, dtype=x.dtype)
    _rms_norm(
        dtype_code(x.dtype),
        rows.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        rows.shape[0],
        size,
        rows.stride(0),
        eps,
        torch.get_num_threads(),
    )
    return out.view(x.shape)
