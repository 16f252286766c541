"""How many KV blocks an engine gets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quire.api.batch import DeviceInfo
from quire.api.config import CacheSettings, EngineConfig
from quire.api.errors import CapacityError
from quire.engine.sizing import BYTES_PER_GRAPH, graphs_bytes, runs_ahead
from quire.execution.kv_memory import KVDemand, size_kv_cache

CPU = DeviceInfo("cpu", total_memory_bytes=10_000, free_memory_bytes=4_000)
GPU = DeviceInfo("cuda", total_memory_bytes=10_000, free_memory_bytes=6_000)


def _demand(*, is_explicit: bool = True, max_num_seqs: int = 100, max_model_len: int = 32) -> KVDemand:
    return KVDemand(100, max_num_seqs, max_model_len, is_explicit, "int8")


def _config(**keywords: object) -> EngineConfig:
    return EngineConfig.from_keywords({"model": "m", **keywords})


def test_a_cpu_gives_half_the_share_of_its_free_memory() -> None:
    budget = size_kv_cache(CacheSettings(block_size=4, gpu_memory_utilization=0.8), CPU, _demand())
    assert (budget.num_blocks, budget.num_tokens, budget.max_model_len) == (16, 64, 32)
    assert "of int8, 25 bytes a token, 16 blocks of 4 = 64 tokens, 2.0 requests of 32" in budget.describe()


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


def test_what_is_reserved_comes_off_the_share_and_off_no_explicit_size() -> None:
    shared, exact = CacheSettings(block_size=4), CacheSettings(block_size=4, kv_cache_memory_bytes=1_000)
    plain, reserving = _demand(max_num_seqs=1000), replace(_demand(max_num_seqs=1000), reserved_bytes=1_000)
    assert (
        size_kv_cache(shared, GPU, plain).num_blocks - size_kv_cache(shared, GPU, reserving).num_blocks == 10
    )
    for settings, device in ((exact, GPU), (shared, CPU)):
        assert size_kv_cache(settings, device, plain) == size_kv_cache(settings, device, reserving)


def test_graphs_have_memory_of_their_own_on_gpus() -> None:
    config = _config(max_num_seqs=24)
    assert graphs_bytes(config, CPU) == 0
    assert graphs_bytes(config, GPU) == 6 * BYTES_PER_GRAPH  # of 1, 2, 4, 8, 16 and 24 rows
    eager = _config(max_num_seqs=24, enforce_eager=True)
    assert graphs_bytes(eager, GPU) == 0
    drafts = {"method": "ngram", "num_speculative_tokens": 3}
    drafting = _config(max_num_seqs=8, speculative_config=drafts)
    assert graphs_bytes(drafting, GPU) == 7 * BYTES_PER_GRAPH  # up to 32 rows


def test_steps_are_planned_ahead_on_gpus_where_nothing_is_drafted() -> None:
    assert runs_ahead(EngineConfig(), GPU) and not runs_ahead(EngineConfig(), CPU)
    assert runs_ahead(_config(async_scheduling=True), CPU)
    assert not runs_ahead(_config(async_scheduling=False), GPU)
    drafts = {"method": "ngram", "num_speculative_tokens": 3}
    assert not runs_ahead(_config(speculative_config=drafts), GPU)
