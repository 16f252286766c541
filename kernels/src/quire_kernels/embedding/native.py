"""The native implementation of `embedding`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from quire_kernels.native.kernel import Kernel
from quire_kernels.native.tensors import C_INT32, C_LONG, C_POINTER


class Gather(ctypes.Structure):
    """`Gather` of native.c."""

    _fields_ = [
        *((name, C_POINTER) for name in ("table", "index", "out")),
        *((name, C_LONG) for name in ("rows", "row_bytes", "table_rows")),
        ("threads", C_INT32),
    ]


gather = Kernel("gather", Gather)
"""Also of the rows that models ask of torch, see `replay.torch_calls`."""


def embedding(token_ids: Tensor, weight: Tensor) -> Tensor:
    """See `quire.ops.embedding.embedding`; any dtype, on a CPU.

    Raises:
        IndexError: an id is out of range.
    """
    index, table = token_ids.to(torch.int64).contiguous(), weight.contiguous()
    out = torch.empty((*index.shape, table.shape[1]), dtype=table.dtype)
    gather(
        Gather(
            table.data_ptr(),
            index.data_ptr(),
            out.data_ptr(),
            index.numel(),
            table.shape[1] * table.itemsize,
            len(table),
            torch.get_num_threads(),
        )
    )
    return out
