"""W1 to W4 as every engine gets them, and the figures of one repeat."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from roofline import MachineLimits, StepCost, least_time_s
from shapes import Shape
from workloads import Job, shared_prefix, sharegpt_like, single

WARM_UP = 90_000
"""A repeat whose ids no measured repeat has."""
_LONG = 50_000
"""Between the ids of W2 and W4: one generator makes both, and W4 must not begin with W2's cached prompt."""


@dataclass(slots=True, frozen=True)
class Sizes:
    """How large the workloads are.

    Attributes:
        most_tokens: that a prompt or output of W1 has.
    """

    num_requests: int = 64
    most_tokens: int = 512
    single_tokens: int = 128
    shared_requests: int = 32
    shared_prefix: int = 512
    shared_tokens: int = 32
    long_prompt: int = 4096
    long_outputs: int = 16


FULL = Sizes()
QUICK = Sizes(4, 24, 16, 4, 64, 8, 256, 4)


@dataclass(slots=True, frozen=True)
class Workload:
    """One of the four.

    Attributes:
        figure: what engines are compared by. is_rate: whether more of it is better.
        is_streamed: one request, whose tokens are timed.
    """

    name: str
    text: str
    figure: str
    is_rate: bool
    is_streamed: bool


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("w1", "requests at once, lengths as in chat logs", "output_tokens_per_s", True, False),
        Workload("w2", "one request", "decode_tokens_per_s", True, True),
        Workload("w3", "requests at once that share a prefix", "wall_s", False, False),
        Workload("w4", "one request of a long prompt", "ttft_s", False, True),
    )
}


def jobs_of(name: str, vocab: int, repeat: int, sizes: Sizes = FULL) -> list[Job]:
    """The jobs of a repeat: every repeat has other ids and the same lengths."""
    if name == "w1":
        most = sizes.most_tokens
        jobs = sharegpt_like(vocab, repeat, sizes.num_requests)
        return [Job(job.prompt[:most], min(job.num_outputs, most)) for job in jobs]
    if name == "w2":
        return [single(vocab, repeat, sizes.single_tokens, sizes.single_tokens)]
    if name == "w3":
        tokens = sizes.shared_tokens
        return shared_prefix(vocab, repeat, sizes.shared_requests, sizes.shared_prefix, tokens, tokens)
    return [single(vocab, _LONG + repeat, sizes.long_prompt, sizes.long_outputs)]


def warm_up_jobs(name: str, vocab: int, sizes: Sizes = FULL) -> list[Job]:
    """A short version, so that nothing is compiled or allocated for the first time while measured."""
    jobs = jobs_of(name, vocab, WARM_UP, sizes)
    longest = {"w1": 8, "w3": 4}.get(name, 16)
    return [Job(job.prompt, min(job.num_outputs, longest)) for job in jobs[:16]]


def describe(name: str, vocab: int, sizes: Sizes = FULL) -> dict[str, object]:
    """For the record."""
    jobs = jobs_of(name, vocab, 0, sizes)
    return {
        "what": WORKLOADS[name].text,
        "num_requests": len(jobs),
        "prompt_tokens": sum(len(job.prompt) for job in jobs),
        "output_tokens": sum(job.num_outputs for job in jobs),
        "shared_tokens": sizes.shared_prefix if name == "w3" else 0,
        "compared_by": WORKLOADS[name].figure,
    }


def figures_of_wall(jobs: Sequence[Job], wall_s: float) -> dict[str, float]:
    """Of a repeat of W1 or W3."""
    return {"output_tokens_per_s": sum(job.num_outputs for job in jobs) / wall_s, "wall_s": wall_s}


def figures_of_times(times_s: Sequence[float]) -> dict[str, float]:
    """Of a repeat of W2 or W4: `times_s` from submission to each token, two or more."""
    itl_s = (times_s[-1] - times_s[0]) / (len(times_s) - 1)
    gaps = sorted(later - earlier for earlier, later in zip(times_s, times_s[1:], strict=False))
    return {
        "ttft_s": times_s[0],
        "itl_s": itl_s,
        "itl_p99_s": gaps[min(len(gaps) - 1, int(0.99 * len(gaps)))],
        "decode_tokens_per_s": 1 / itl_s,
    }


def limit_fraction(
    name: str,
    shape: Shape,
    jobs: Sequence[Job],
    figures: dict[str, float],
    limits: MachineLimits,
    shared: int,
) -> float:
    """The least time over the time taken: of W2 between tokens, of W4 to the first, of others in all."""
    if name == "w4":
        return _prefill_s(shape, jobs, limits) / figures["ttft_s"]
    if name == "w2":
        decode_s = least_time_s(shape, jobs, limits) - _prefill_s(shape, jobs, limits)
        return decode_s / (jobs[0].num_outputs - 1) / figures["itl_s"]
    return least_time_s(shape, jobs, limits, shared if name == "w3" else 0) / figures["wall_s"]


def _prefill_s(shape: Shape, jobs: Sequence[Job], limits: MachineLimits) -> float:
    cost = StepCost(shape)
    for job in jobs:
        cost.add(0, len(job.prompt))
    return limits.least_time_s(cost.num_bytes, cost.num_flops)


def summary(repeats: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median, least and most of each figure over the repeats."""
    return {
        key: {
            "median": _rounded(statistics.median(values)),
            "min": _rounded(min(values)),
            "max": _rounded(max(values)),
        }
        for key in repeats[0]
        if (values := [repeat[key] for repeat in repeats])
    }


def paired_ratios(
    workload: Workload, ours: dict[int, dict[str, float]], theirs: dict[int, dict[str, float]]
) -> dict[str, float]:
    """How many times as fast we are, repeat by repeat: median, least and most; over 1: we are faster.

    Args:
        ours: the figures of each repeat, by its number. theirs: likewise; repeats that one lacks do not count.
    """
    ratios = []
    for repeat in sorted(ours.keys() & theirs.keys()):
        mine, other = ours[repeat][workload.figure], theirs[repeat][workload.figure]
        ratios.append(mine / other if workload.is_rate else other / mine)
    if not ratios:
        return {}
    return {
        "median": round(statistics.median(ratios), 3),
        "min": round(min(ratios), 3),
        "max": round(max(ratios), 3),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
