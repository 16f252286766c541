from __future__ import annotations

import statistics

import pytest

from peer_workloads import (
    FULL,
    QUICK,
    WORKLOADS,
    describe,
    figures_of_times,
    figures_of_wall,
    jobs_of,
    limit_fraction,
    paired_ratios,
    summary,
    warm_up_jobs,
)
from roofline import MachineLimits
from shapes import SHAPES
from workloads import Job

VOCAB = 49152
LIMITS = MachineLimits(10e9, 10e9, 1e12)


def test_w1_has_clipped_lengths_of_the_stated_means_and_new_ids_in_each_repeat() -> None:
    one, other = jobs_of("w1", VOCAB, 0), jobs_of("w1", VOCAB, 1)
    prompts, outputs = [len(job.prompt) for job in one], [job.num_outputs for job in one]
    assert len(one) == 64
    assert statistics.mean(prompts) == pytest.approx(220, abs=1)
    assert statistics.mean(outputs) == pytest.approx(180, abs=1)
    assert min(prompts + outputs) >= 16
    assert max(prompts + outputs) <= 512
    assert [(len(job.prompt), job.num_outputs) for job in other] == list(zip(prompts, outputs, strict=True))
    assert all(mine.prompt != theirs.prompt for mine, theirs in zip(one, other, strict=True))


def test_w2_w3_and_w4_have_the_stated_sizes() -> None:
    [short], [long] = jobs_of("w2", VOCAB, 0), jobs_of("w4", VOCAB, 0)
    assert (len(short.prompt), short.num_outputs) == (128, 128)
    assert (len(long.prompt), long.num_outputs) == (4096, 16)
    shared = jobs_of("w3", VOCAB, 0)
    assert [(len(job.prompt), job.num_outputs) for job in shared] == [(544, 32)] * 32
    assert len({tuple(job.prompt[:512]) for job in shared}) == 1
    assert len({tuple(job.prompt[512:]) for job in shared}) == 32


@pytest.mark.parametrize("repeat", range(3))
def test_no_prompt_begins_with_one_that_another_workload_may_have_left_in_a_prefix_cache(repeat: int) -> None:
    begins = {name: jobs_of(name, VOCAB, repeat)[0].prompt[:16] for name in WORKLOADS}
    begins |= {f"{name} warm-up": warm_up_jobs(name, VOCAB)[0].prompt[:16] for name in WORKLOADS}
    assert len({tuple(ids) for ids in begins.values()}) == 8


def test_warm_up_jobs_are_few_and_short() -> None:
    for name in WORKLOADS:
        jobs = warm_up_jobs(name, VOCAB)
        assert 1 <= len(jobs) <= 16
        assert max(job.num_outputs for job in jobs) <= 16


def test_quick_sizes_bound_w1() -> None:
    jobs = jobs_of("w1", VOCAB, 0, QUICK)
    assert len(jobs) == QUICK.num_requests
    assert max(max(len(job.prompt), job.num_outputs) for job in jobs) <= QUICK.most_tokens


def test_the_record_tells_what_a_workload_is() -> None:
    assert describe("w3", VOCAB, FULL) == {
        "what": "requests at once that share a prefix",
        "num_requests": 32,
        "prompt_tokens": 32 * 544,
        "output_tokens": 1024,
        "shared_tokens": 512,
        "compared_by": "wall_s",
    }


def test_figures_of_a_repeat() -> None:
    assert figures_of_wall([Job([1], 30), Job([2], 10)], 4.0) == {"output_tokens_per_s": 10.0, "wall_s": 4.0}
    assert figures_of_times([1.0, 1.5, 3.0]) == {
        "ttft_s": 1.0,
        "itl_s": 1.0,
        "itl_p99_s": 1.5,
        "decode_tokens_per_s": 1.0,
    }


def test_ratios_pair_the_repeats_that_both_have_and_say_how_much_faster_we_are() -> None:
    ours = {
        0: {"output_tokens_per_s": 10.0},
        1: {"output_tokens_per_s": 40.0},
        2: {"output_tokens_per_s": 9.0},
    }
    theirs = {0: {"output_tokens_per_s": 5.0}, 1: {"output_tokens_per_s": 10.0}}
    assert paired_ratios(WORKLOADS["w1"], ours, theirs) == {"median": 3.0, "min": 2.0, "max": 4.0}
    walls = paired_ratios(WORKLOADS["w3"], {0: {"wall_s": 1.0}}, {0: {"wall_s": 2.0}})
    assert walls == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert paired_ratios(WORKLOADS["w4"], {0: {"ttft_s": 1.0}}, {1: {"ttft_s": 2.0}}) == {}


def test_the_summary_is_of_every_figure() -> None:
    repeats = [
        {"wall_s": 3.0, "others_cpu": 0.0},
        {"wall_s": 1.0, "others_cpu": 0.5},
        {"wall_s": 2.0, "others_cpu": 0.1},
    ]
    assert summary(repeats) == {
        "wall_s": {"median": 2.0, "min": 1.0, "max": 3.0},
        "others_cpu": {"median": 0.1, "min": 0.0, "max": 0.5},
    }


def test_the_fraction_of_the_limit_of_one_request_is_that_of_reading_weights_and_context() -> None:
    shape = SHAPES["S"]
    [job] = jobs_of("w2", VOCAB, 0)
    weights = 2 * (shape.linear_params + shape.head_params)
    mean_context = 128 + (128 - 2) / 2
    least_s = (weights + mean_context * shape.kv_bytes_per_token) / 10e9
    found = limit_fraction("w2", shape, [job], {"itl_s": 2 * least_s}, LIMITS, 0)
    assert found == pytest.approx(0.5, rel=1e-6)


def test_the_fraction_of_the_limit_of_a_long_prompt_is_that_of_its_operations() -> None:
    shape = SHAPES["S"]
    [job] = jobs_of("w4", VOCAB, 0)
    attention = 4 * (4096 * 4097 / 2) * shape.layers * shape.heads * shape.head_size
    operations = 2 * 4096 * shape.linear_params + 2 * shape.head_params + attention
    found = limit_fraction("w4", shape, [job], {"ttft_s": 4 * operations / 1e12}, LIMITS, 0)
    assert found == pytest.approx(0.25, rel=1e-6)
