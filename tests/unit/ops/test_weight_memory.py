"""Memory for weights: tensors of their own, on large pages where the kernel has them."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path

import pytest
import torch
from large_pages import NEEDS_LARGE_PAGES, flags_at

from quire.execution.host_memory import lazy_zeros
from quire.ops import weight_memory
from quire.ops.linear import pack_panels
from quire.ops.weight_memory import WeightMemory, empty_weight

MIB = 1 << 20


def test_weights_do_not_touch_each_other() -> None:
    memory = WeightMemory(chunk_bytes=MIB)
    shapes = [(5, 1001), (70, 1024), (3, 7, 999), (1024, 1025), (33, 500), (2, 2)]
    tensors = [memory.empty(shape, torch.bfloat16) for shape in shapes * 5]
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    for number, (tensor, shape) in enumerate(zip(tensors, shapes * 5, strict=True)):
        assert tensor.shape == shape and tensor.is_contiguous()
        assert bool((tensor == number).all())
        assert tensor.data_ptr() % 64 == 0


def test_a_weight_that_is_larger_than_a_chunk_gets_one_of_its_own() -> None:
    memory = WeightMemory(chunk_bytes=MIB)
    small, large, after = (memory.empty((size,), torch.uint8) for size in (5000, 3 * MIB + 1, 5000))
    assert [x.numel() for x in (small, large, after)] == [5000, 3 * MIB + 1, 5000]
    large.zero_()


@NEEDS_LARGE_PAGES
def test_the_pages_of_weights_and_kv_caches_are_asked_to_be_large() -> None:
    weight = empty_weight((4 * MIB,), torch.uint8, torch.device("cpu"))
    assert "hg" in flags_at(weight.data_ptr() + 2 * MIB)
    assert "hg" in flags_at(lazy_zeros((4 * MIB,), torch.uint8).data_ptr() + 2 * MIB)
    panels = pack_panels(torch.zeros(2048, 1024, dtype=torch.bfloat16))
    assert "hg" in flags_at(panels.data_ptr())


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
def test_memory_is_free_when_its_weights_are_gone() -> None:
    memory = WeightMemory(chunk_bytes=MIB)
    weights = [memory.empty((size,), torch.uint8).fill_(1) for size in [MIB // 4] * 40 + [8 * MIB] * 8]
    with_all = mapped_bytes()
    weights.clear()
    gc.collect()
    assert with_all - mapped_bytes() >= 70 * MIB  # of 74; the last small chunk is kept for what comes


def test_where_the_system_grants_no_chunk_torch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(weight_memory.mmap, "mmap", refuse)
    tensor = WeightMemory().empty((100, 100), torch.float32)
    assert tensor.fill_(2).sum() == 20000


def test_weights_can_be_filled_within_inference_mode_and_without() -> None:
    memory = WeightMemory()
    with torch.inference_mode():
        memory.empty((4096,), torch.float32).copy_(torch.ones(4096))
    memory.empty((4096,), torch.float32).copy_(torch.ones(4096))


def test_other_devices_have_their_own() -> None:
    assert empty_weight((4, 5000), torch.float16, torch.device("meta")).device.type == "meta"


def mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
