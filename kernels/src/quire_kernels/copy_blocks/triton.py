"""`copy_blocks` in Triton, for CUDA and ROCm."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.api.errors import ShapeError
from quire_kernels.copy_blocks.triton_kernel import copy_words
from quire_kernels.triton.launch import on_device_of

_BLOCK = 2048
"""Words of a program: 16 a thread."""


def copy_blocks(cache: Tensor, sources: Tensor, destinations: Tensor) -> Tensor:
    """See `quire.ops.copy_blocks.copy_blocks`; caches of any dtype, ids wherever they lie.

    Raises:
        ShapeError: the cache is not contiguous.
    """
    if not cache.is_contiguous():
        raise ShapeError(
            f"a KV cache is contiguous; this one is {list(cache.shape)}, strides {cache.stride()}"
        )
    if cache.numel() == 0 or len(sources) == 0:
        return cache
    blocks = cache.view(len(cache), -1)
    has_words = (
        blocks.shape[1] * blocks.itemsize % 4 == 0 and blocks.storage_offset() * blocks.itemsize % 4 == 0
    )
    words = blocks.view(torch.int32 if has_words else torch.uint8)
    with on_device_of(cache):
        copy_words[(len(sources), -(-words.shape[1] // _BLOCK))](
            words,
            sources,
            destinations,
            sources.stride(0),
            destinations.stride(0),
            len(words),
            words.shape[1],
            BLOCK=_BLOCK,
            num_warps=4,
        )
    return cache
