"""How many KV blocks an engine gets."""

from __future__ import annotations

import pytest

from quire.api.batch import DeviceInfo
from quire.api.config import CacheSettings
from quire.api.errors import CapacityError
from quire.execution.kv_memory import KVDemand, size_kv_cache

CPU = DeviceInfo("cpu", total_memory_bytes=10_000, free_memory_bytes=4_000)
GPU = DeviceInfo("cuda", total_memory_bytes=10_000, free_memory_bytes=6_000)


def _demand(*, is_explicit: bool = True, max_num_seqs: int = 100, max_model_len: int = 32) -> KVDemand:
    return KVDemand(100, max_num_seqs, max_model_len, is_explicit)


def test_a_cpu_gives_half_the_share_of_its_free_memory() -> None:
    budget = size_kv_cache(CacheSettings(block_size=4, gpu_memory_utilization=0.8), CPU, _demand())
    assert (budget.num_blocks, budget.num_tokens, budget.max_model_len) == (16, 64, 32)
    assert "16 blocks of 4 = 64 tokens, 2.0 requests of 32" in budget.describe()


def test_a_gpu_gives_its_share_less_what_is_in_use() -> None:
    budget = size_kv_cache(CacheSettings(block_size=4, gpu_memory_utilization=0.8), GPU, _demand())
    assert budget.num_blocks == 40


def test_bytes_win_over_the_share_and_blocks_over_bytes() -> None:
    settings = CacheSettings(block_size=4, kv_cache_memory_bytes=1_250)
    assert size_kv_cache(settings, CPU, _demand()).num_blocks == 12
    settings = CacheSettings(block_size=4, kv_cache_memory_bytes=1_250, num_kv_blocks=9)
    assert size_kv_cache(settings, CPU, _demand()).num_blocks == 9


def test_never_more_than_all_requests_of_the_longest_context() -> None:
    settings = CacheSettings(block_size=4, num_kv_blocks=1000)
    assert size_kv_cache(settings, CPU, _demand(max_num_seqs=3, max_model_len=30)).num_blocks == 3 * 8


def test_a_cache_of_exactly_one_request_and_of_one_block_less() -> None:
    assert size_kv_cache(CacheSettings(block_size=4, num_kv_blocks=8), CPU, _demand()).num_blocks == 8
    with pytest.raises(CapacityError, match="holds 28 tokens.*needs 8 blocks = 800 bytes"):
        size_kv_cache(CacheSettings(block_size=4, num_kv_blocks=7), CPU, _demand())
    budget = size_kv_cache(CacheSettings(block_size=4, num_kv_blocks=7), CPU, _demand(is_explicit=False))
    assert budget.max_model_len == 28


def test_no_block_at_all_is_refused() -> None:
    with pytest.raises(CapacityError, match="kv_cache_memory_bytes=99"):
        size_kv_cache(CacheSettings(block_size=4, kv_cache_memory_bytes=99), CPU, _demand(is_explicit=False))


def test_more_than_the_machine_has_is_refused_and_more_than_is_free_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine = DeviceInfo("cpu", total_memory_bytes=2_000, free_memory_bytes=1_000)
    demand = _demand(max_num_seqs=100)
    with caplog.at_level("WARNING", logger="quire"):
        size_kv_cache(CacheSettings(block_size=4, kv_cache_memory_bytes=1_000), machine, demand)
        assert not caplog.records
        size_kv_cache(CacheSettings(block_size=4, kv_cache_memory_bytes=2_000), machine, demand)
    assert "may grow to 2000 bytes; 1000 are free now" in caplog.text
    with pytest.raises(CapacityError, match="would take 2100 bytes of 2000"):
        size_kv_cache(CacheSettings(block_size=4, kv_cache_memory_bytes=2_100), machine, demand)
