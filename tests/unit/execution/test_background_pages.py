"""Pages of KV caches that a thread brings ahead of use."""

from __future__ import annotations

import ctypes
import logging
import mmap
import sys
import threading

import pytest
import torch

from quire.execution import host_memory
from quire.execution.host_memory import BackgroundPages, lazy_zeros

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux brings pages on demand")

PAGES = 700
NO_HUGE_PAGES = 15  # MADV_NOHUGEPAGE of Linux


def num_resident(cache: torch.Tensor) -> int:
    """Pages of a cache that have memory."""
    count = -(-cache.nbytes // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * count)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(cache.data_ptr()), ctypes.c_size_t(cache.nbytes), found) == 0
    return sum(byte & 1 for byte in found)


def make_cache() -> torch.Tensor:
    """A cache of small pages, which can be counted."""
    cache = lazy_zeros((PAGES * mmap.PAGESIZE // 64, 64), torch.uint8)
    address, size = ctypes.c_void_p(cache.data_ptr()), ctypes.c_size_t(cache.nbytes)
    ctypes.CDLL(None).madvise(address, size, NO_HUGE_PAGES)
    return cache


def test_all_pages_come_and_contents_stay() -> None:
    caches = [make_cache(), make_cache()]
    caches[1][5] = 7
    assert num_resident(caches[0]) == 0
    pages = BackgroundPages(caches, delay_s=0)
    assert pages.join(60)
    assert [num_resident(cache) for cache in caches] == [PAGES, PAGES]
    assert int(caches[1].sum()) == 7 * 64 and int(caches[0].sum()) == 0
    pages.stop()


def test_what_lies_first_comes_first_and_a_stop_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "_SLICE_BYTES", 64 * mmap.PAGESIZE)
    caches = [make_cache(), make_cache()]
    pages: list[BackgroundPages] = []
    is_made, calls = threading.Event(), []
    libc = ctypes.CDLL(None, use_errno=True)

    class Counted:
        def madvise(self, *arguments: object) -> int:
            assert is_made.wait(60)
            calls.append(arguments)
            if len(calls) == 4:
                pages[0]._is_stopped.set()
            return int(libc.madvise(*arguments))

    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda *_, **__: Counted())
    pages.append(BackgroundPages(caches, delay_s=0))
    is_made.set()
    assert pages[0].join(60)
    monkeypatch.undo()
    some = num_resident(caches[0])
    assert len(calls) == 4 and 0 < some < PAGES // 4 and num_resident(caches[1]) == some
    assert bool((caches[0].view(PAGES, -1)[some - 1] == 0).all())


def test_a_stop_before_the_delay_brings_nothing() -> None:
    cache = make_cache()
    pages = BackgroundPages([cache], delay_s=600)
    pages.stop()
    assert pages.join(0) and num_resident(cache) == 0


def test_a_kernel_that_refuses_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host_memory, "_POPULATE_WRITE", 12345)
    cache = make_cache()
    with caplog.at_level(logging.DEBUG, logger="quire"):
        assert BackgroundPages([cache], delay_s=0).join(60)
    assert num_resident(cache) == 0
    assert "come when they are used: madvise: Invalid argument" in caplog.text


def test_what_a_step_writes_comes_at_once_and_the_rest_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "_SLICE_BYTES", 20 * mmap.PAGESIZE)
    caches = [make_cache(), make_cache()]
    pages = BackgroundPages(caches, delay_s=3600)
    pages.bring(1, 10)
    for cache in caches:
        assert PAGES // 10 <= num_resident(cache) <= PAGES // 10 + 12
    pages.bring(1, 10)
    pages.bring(5, 10)
    assert all(PAGES // 2 <= num_resident(cache) <= PAGES // 2 + 12 for cache in caches)
    pages.bring(10, 10)
    assert [num_resident(cache) for cache in caches] == [PAGES, PAGES]
    pages.stop()
