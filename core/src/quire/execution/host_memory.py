"""Memory of the host that costs nothing until it is used, and that a background thread can bring early."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import mmap
import os
import sys
import threading
from collections.abc import Sequence

import torch

from quire.api.errors import CapacityError
from quire.execution.device import host_memory_bytes

logger = logging.getLogger(__name__)

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14: bring pages as if they were written, contents stay
_SLICE_BYTES = 8 << 20
_SLICES_PER_LOOK = 16
_LEAST_FREE = 0.1
"""Of all memory: what is left then is for others. The kernel would not refuse, but end a process."""


def lazy_zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros, whose pages the kernel brings when they are first written; starting with gigabytes takes no time.

    Pages are large where the kernel has such: reading blocks from all over a cache waits less for their addresses.

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
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(*shape)


class BackgroundPages:
    """Brings the pages of KV caches, the first blocks first, so that steps do not wait for the kernel's zeroing.

    A thread does it that runs only on idle cores, in some seconds for gigabytes. It begins late, for the sake of
    short runs, and gives up quietly where the kernel refuses (before Linux 5.14) and where memory becomes short.
    Steps bring what they are about to write and the thread has not reached: in one call that is several times as
    fast as page by page.
    """

    def __init__(self, caches: Sequence[torch.Tensor], delay_s: float = 1.0) -> None:
        """Start the thread.

        Args:
            caches: of the CPU, contiguous; what lies first in each is brought first.
            delay_s: seconds until it begins.
        """
        self._caches = list(caches)
        self._delay_s = delay_s
        self._num_slices = 1 + sum(cache.nbytes for cache in caches) // _SLICE_BYTES
        self._next = 0
        self._lock = threading.Lock()  # of the field above
        self._is_stopped = threading.Event()
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise if sys.platform == "linux" else None
        self._thread = threading.Thread(target=self._run, name="quire-kv-pages", daemon=True)
        self._thread.start()

    def bring(self, num_first: int, num_all: int) -> None:
        """Bring now what is missing of the first blocks, or slots, of all that there are."""
        last = min(self._num_slices, num_first * self._num_slices // num_all + 1)
        while self._next < last and self._bring_next(last):
            pass

    def stop(self) -> None:
        """End the thread, after the slice that it is at, and let the caches go."""
        self._is_stopped.set()
        self._thread.join()
        self._caches = []

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until the thread has done all; whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        if self._madvise is None or self._is_stopped.wait(self._delay_s):
            return
        try:
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
        except OSError as error:
            _tell(f"no idle priority: {error.strerror}")
            return
        for i in range(self._num_slices):
            if i % _SLICES_PER_LOOK == 0 and _is_short():
                _tell(f"less than {_LEAST_FREE:.0%} of the memory is free")
                return
            if not self._bring_next(self._num_slices):
                return

    def _bring_next(self, end: int) -> bool:
        """Bring the first slice that nobody has brought; whether there was one before `end`, and it came."""
        with self._lock:
            i = self._next
            if i >= end or self._madvise is None:
                return False
            self._next = i + 1
        for cache in self._caches:
            first = cache.data_ptr() + cache.nbytes * i // self._num_slices
            begin = first // mmap.PAGESIZE * mmap.PAGESIZE
            size = cache.data_ptr() + cache.nbytes * (i + 1) // self._num_slices - begin
            if self._is_stopped.is_set():
                return False
            if self._madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), _POPULATE_WRITE):
                _tell(f"madvise: {os.strerror(ctypes.get_errno())}")
                self._next = self._num_slices  # nor will the others come
                return False
        return True


def _is_short() -> bool:
    total, free = host_memory_bytes()
    return free < _LEAST_FREE * total


def _tell(reason: str) -> None:
    logger.debug("pages of the KV cache come when they are used: %s", reason)
