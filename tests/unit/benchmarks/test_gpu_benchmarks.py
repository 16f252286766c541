from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import gpu_engine
from decode_steps import RunningRequests
from gpu import BUDGETS_S, TOTAL_S, has_failed, line_of
from gpu_attention import QUICK_ATTENTION_CASES, AttentionCase, PagedCase, measure_attention
from gpu_engine import FULL, measure_engine
from gpu_models import DECODERS, QUICK_DECODERS, RandomCheckpoint, offline_floor_s, random_model, step_floor_s
from gpu_timing import Deadline, Timer, each_once, limits_of, measure_ceilings
from quire import LLM
from quire.api.protocols import AttentionParams
from quire.ops.paged_attention import TorchPagedAttention
from roofline import MachineLimits

LIMITS = MachineLimits(4.3e12, 4.3e12, 790e12)
LLAMA = DECODERS["8B"]


def test_the_shapes_are_those_of_the_models_they_stand_for() -> None:
    assert LLAMA.body_params == pytest.approx(6.98e9, rel=1e-3)
    assert LLAMA.head_params == pytest.approx(0.525e9, rel=1e-2)
    assert LLAMA.kv_bytes_per_token == 128 * 1024
    assert DECODERS["0.6B"].kv_bytes_per_token == 112 * 1024
    assert DECODERS["0.6B"].body_params + DECODERS["0.6B"].head_params == pytest.approx(0.6e9, rel=0.02)


@pytest.mark.parametrize(("batch", "floor_ms"), [(1, 3.52), (32, 4.49), (128, 7.49), (256, 12.86)])
def test_the_floor_of_a_decode_step(batch: int, floor_ms: float) -> None:
    """Worked out by hand: 15.01 GB of weights and 128 KiB a token of context, then 790 TFLOP/s."""
    assert 1e3 * step_floor_s(LLAMA, LIMITS, [(1024, 1)] * batch) == pytest.approx(floor_ms, rel=5e-3)


def test_the_floor_of_prompts() -> None:
    assert 1e3 * step_floor_s(LLAMA, LIMITS, [(0, 8192)]) == pytest.approx(144.8 + 22.3, rel=5e-3)
    assert 1e3 * step_floor_s(LLAMA, LIMITS, [(0, 1024)] * 8) == pytest.approx(147.5, rel=5e-3)


def test_the_floor_of_offline_jobs_is_that_of_their_steps() -> None:
    steps = [[(0, 100), (0, 50)], [(100, 1), (50, 1)], [(101, 1)]]
    expected = sum(step_floor_s(LLAMA, LIMITS, rows) for rows in steps)
    assert offline_floor_s(LLAMA, LIMITS, [100, 50], [3, 2]) == pytest.approx(expected)


@pytest.mark.parametrize("name", QUICK_DECODERS)
def test_a_decoder_of_random_weights_runs_and_holds_what_it_says(name: str, tmp_path: Path) -> None:
    decoder = QUICK_DECODERS[name]
    shapes = decoder.tensor_shapes()
    matrices = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 2)
    untied = 0 if decoder.is_tied else decoder.head_params
    assert matrices == decoder.body_params + decoder.head_params + untied
    host = random_model(decoder, tmp_path)
    with LLM(
        tmp_path, host=host, device="cpu", skip_tokenizer_init=True, num_kv_blocks=64, max_model_len=128
    ) as llm:
        running = RunningRequests(llm, decoder.vocab)
        running.add([running.draw(20), running.draw(10)], 30)
        steps = running.measure(6)
        assert steps.contexts == [20 + 3 + 3, 10 + 3 + 3]
        assert len(steps.seconds) == 6
        assert 0 < steps.share("schedule", "build") < steps.share(*steps.host_s) < 1
        running.drop()
        assert not llm.engine.has_unfinished
        assert len(running) == 0


def test_steps_that_end_a_request_are_refused(tmp_path: Path) -> None:
    decoder = QUICK_DECODERS["0.6B"]
    host = random_model(decoder, tmp_path)
    with LLM(
        tmp_path, host=host, device="cpu", skip_tokenizer_init=True, num_kv_blocks=64, max_model_len=128
    ) as llm:
        running = RunningRequests(llm, decoder.vocab)
        running.add([running.draw(20)], 30)
        running.add([running.draw(20)], 7)
        with pytest.raises(RuntimeError, match="not every request"):
            running.measure(10)


def test_random_weights_are_small_and_norms_are_ones() -> None:
    checkpoint = RandomCheckpoint(QUICK_DECODERS["0.6B"])
    weight = checkpoint.read("model.embed_tokens.weight")
    assert weight.dtype == torch.bfloat16
    assert float(weight.float().std()) == pytest.approx(0.02, rel=0.05)
    assert bool((checkpoint.read("model.norm.weight") == 1).all())


@pytest.mark.parametrize("case", [*QUICK_ATTENTION_CASES, AttentionCase(3, 33, 5)], ids=str)
def test_the_tensors_of_others_are_those_in_the_blocks(case: AttentionCase) -> None:
    layer = PagedCase(case, TorchPagedAttention(), AttentionParams(4, 2, 32, scale=32**-0.5), "cpu")
    if case.num_new in (1, case.context):  # SDPA's causal mask is of a whole prompt
        assert layer.difference() < 0.01
    tables, length = layer.batch.block_tables.long(), case.context
    found = layer.cache[tables].flatten(1, 2)[:, :length]  # [R, L, 2 K, D]
    assert torch.equal(found[:, :, :2].transpose(1, 2), layer.keys)
    assert torch.equal(found[:, :, 2:].transpose(1, 2), layer.values)
    layer.ours()
    assert torch.equal(layer.cache[tables].flatten(1, 2)[:, :length], found)


def test_attention_that_differs_gets_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PagedCase, "difference", lambda self: float("nan"))
    records = list(measure_attention(Timer("cpu", 1), LIMITS, Deadline(60), is_quick=True))
    assert [set(record) for record in records] == [{"case", "failure"}] * len(QUICK_ATTENTION_CASES)


def test_ceilings_become_limits() -> None:
    limits = limits_of(list(measure_ceilings(Timer("cpu", 1), is_quick=True)))
    assert min(limits.read_bytes_per_s, limits.triad_bytes_per_s, limits.flops_per_s) > 0
    given = [
        {"case": case, "bytes_per_s": rate} for case, rate in (("read", 3.0), ("copy", 4.0), ("triad", 2.0))
    ]
    assert limits_of([*given, {"case": "product", "flops_per_s": 7.0}]) == MachineLimits(4.0, 2.0, 7.0)
    with pytest.raises(KeyError):
        limits_of([])


def test_cases_that_have_no_time_are_skipped_and_an_offline_run_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records = list(measure_engine("0.6B", "cpu", LIMITS, Deadline(0), is_quick=True))
    assert records[0]["case"] == "load"
    assert [record.get("skipped") for record in records[1:]] == ["no time left"] * 5
    monkeypatch.setattr(gpu_engine, "MIN_LEFT_S", -60.0)
    records = list(measure_engine("0.6B", "cpu", LIMITS, Deadline(0), is_quick=True))
    assert not [record for record in records if "skipped" in record]
    assert records[-1]["is_whole"] is False
    assert "fraction" not in records[-1]
    assert all(float(str(record["seconds"])) > float(str(record["limit_s"])) > 0 for record in records[1:-1])


def test_all_sections_fit_into_nine_minutes() -> None:
    assert TOTAL_S < 9 * 60
    assert sum(BUDGETS_S.values()) <= TOTAL_S
    assert {f"engine {name}" for name in FULL} <= set(BUDGETS_S)


def test_a_section_has_failed_where_a_record_has() -> None:
    assert has_failed({"failure": "no time left", "records": []})
    assert has_failed({"records": [{"case": "a", "failure": "differs"}]})
    assert not has_failed({"records": [{"case": "a", "seconds": 1.0}]})


def test_a_line_tells_time_fraction_and_ratio() -> None:
    line = line_of(
        {"case": "decode", "seconds": 0.002, "limit_s": 0.001, "fraction": 0.5, "times_as_fast_as_sdpa": 1.5}
    )
    assert line.split() == ["decode", "2.000", "ms", "50.0", "%", "of", "the", "limit", "1.50", "x", "sdpa"]


def test_each_once_runs_all() -> None:
    seen: list[int] = []
    each_once([lambda: seen.append(1), lambda: seen.append(2)])()
    assert seen == [1, 2]
