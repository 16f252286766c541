"""The native implementation of `copy_blocks`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from quire.api.errors import ShapeError
from quire_kernels.native.kernel import Kernel
from quire_kernels.native.tensors import C_INT32, C_LONG, C_POINTER


class _CopyBlocks(ctypes.Structure):
    """`CopyBlocks` of native.c."""

    _fields_ = [
        *((name, C_POINTER) for name in ("cache", "sources", "destinations")),
        *((name, C_LONG) for name in ("pairs", "block_bytes", "num_blocks")),
        ("threads", C_INT32),
    ]


_copy_blocks = Kernel("copy_blocks", _CopyBlocks)


def copy_blocks(cache: Tensor, sources: Tensor, destinations: Tensor) -> Tensor:
    """See `quire.ops.copy_blocks.copy_blocks`; on a CPU.

    Raises:
        IndexError: an id is out of range; nothing is copied then.
        ShapeError: the cache is not contiguous.
    """
    if not cache.is_contiguous():
        raise ShapeError(
            f"a KV cache is contiguous; this one is {list(cache.shape)}, strides {cache.stride()}"
        )
    sources, destinations = sources.contiguous(), destinations.contiguous()
    if cache.numel():
        _copy_blocks(
            _CopyBlocks(
                cache.data_ptr(),
                sources.data_ptr(),
                destinations.data_ptr(),
                len(sources),
                cache[0].nbytes,
                len(cache),
                torch.get_num_threads(),
            )
        )
    return cache
