"""The reference of copying KV blocks."""

from __future__ import annotations

from torch import Tensor


def copy_blocks(cache: Tensor, sources: Tensor, destinations: Tensor) -> Tensor:
    """Copy whole blocks within one layer's KV cache, in place: forks write into copies of what they share.

    Args:
        cache: [num_blocks, ...], contiguous, of any dtype.
        sources: int64 [N], same device.
        destinations: the same, each id once, and none that is a source too (see `AttentionBackend.copy_blocks`): so
            the order of the copies is nobody's business.

    Returns:
        The cache.

    Raises:
        IndexError: an id is out of range, on a CPU. A GPU cannot raise: there this fails the device's work, and kernels
            copy nothing for that pair.

    Source: Kwon et al. 2023, section 4.4.
    """
    return cache.index_copy_(0, destinations, cache.index_select(0, sources))
