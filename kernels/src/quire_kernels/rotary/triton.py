"""`rotary` in Triton, for CUDA and ROCm."""

from __future__ import annotations

from torch import Tensor

from quire_kernels.rotary.triton_kernel import rotate_heads
from quire_kernels.triton.launch import check_dtype, on_device_of

_BLOCK = 1024
"""Pairs of a program."""


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """See `quire.ops.rotary.rotary`; bfloat16, float16 and float32, one launch for queries and keys."""
    check_dtype(query)
    num_tokens, pairs = cos.shape
    query_heads, key_heads = query.shape[1], key.shape[1]
    if num_tokens == 0 or pairs == 0:
        return query, key
    block_pairs = 1 << (pairs - 1).bit_length()
    block_heads = min(1 << (max(query_heads, key_heads) - 1).bit_length(), max(1, _BLOCK // block_pairs))
    blocks = -(-query_heads // block_heads) + -(-key_heads // block_heads)
    with on_device_of(query):
        rotate_heads[num_tokens, blocks](
            query,
            key,
            cos.contiguous(),
            sin.contiguous(),
            query_heads,
            key_heads,
            query.stride(0),
            query.stride(1),
            key.stride(0),
            key.stride(1),
            pairs,
            INTERLEAVED=interleaved,
            BLOCK_HEADS=block_heads,
            BLOCK_PAIRS=block_pairs,
        )
    return query, key
