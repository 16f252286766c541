"""Memory of the host that costs nothing until it is used."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch

from quire.api.errors import CapacityError


def lazy_zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros, whose pages the kernel brings when they are first written; starting with gigabytes takes no time.

    Raises:
        CapacityError: the kernel does not grant so much.
    """
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.zeros(shape, dtype=dtype)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError) as error:
        raise CapacityError(
            f"a part of the KV cache takes {size} bytes, which the system does not grant ({error}): lower "
            "kv_cache_memory_bytes, num_kv_blocks or gpu_memory_utilization"
        ) from None
    return torch.frombuffer(memory, dtype=dtype).view(*shape)
