"""`embedding` in Triton, for CUDA and ROCm."""

from __future__ import annotations

from torch import Tensor

from quire_kernels.embedding.triton_kernel import take_rows
from quire_kernels.triton.launch import check_dtype, on_device_of

_LARGEST_BLOCK = 2048
"""Values of a program: 16 a thread."""


def embedding(token_ids: Tensor, weight: Tensor) -> Tensor:
    """See `quire.ops.embedding.embedding`; bfloat16, float16 and float32, whatever the strides.

    A row is NaN where its id is out of range.
    """
    check_dtype(weight)
    table = weight if weight.stride(1) == 1 else weight.contiguous()
    index, size = token_ids.reshape(-1), table.shape[1]
    out = table.new_empty((*token_ids.shape, size))
    if out.numel() == 0:
        return out
    block = min(1 << (size - 1).bit_length(), _LARGEST_BLOCK)
    with on_device_of(weight):
        take_rows[(len(index), -(-size // block))](
            index,
            table,
            out,
            index.stride(0),
            len(table),
            table.stride(0),
            size,
            BLOCK=block,
            num_warps=4,
        )
    return out
