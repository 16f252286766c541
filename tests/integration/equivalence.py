"""Greedy tokens against transformers.generate, in float64, over the ways that an engine can compute them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quire import LLM, SamplingParams
from quire.api.outputs import Metric

MAX_MODEL_LEN = 96
CHUNKS: tuple[int | None, ...] = (1, 7, 16, None)
CACHES = ("off", "cold", "warm")
BLOCK_SIZES = (1, 4, 16)
POOLS = ("ample", "scarce")


@dataclass(frozen=True)
class Case:
    """One way to run: token budget of a step, prefix cache, block size, KV pool."""

    chunk: int | None
    cache: str
    block_size: int
    pool: str

    def __str__(self) -> str:
        return f"chunk={self.chunk or 'off'},cache={self.cache},block={self.block_size},pool={self.pool}"


def all_cases() -> list[Case]:
    """Every combination but one: with a budget of one token a single request runs, and nothing preempts it."""
    cases = [Case(c, k, b, p) for c in CHUNKS for k in CACHES for b in BLOCK_SIZES for p in POOLS]
    return [case for case in cases if (case.chunk, case.pool) != (1, "scarce")]


def pairwise_cases() -> list[Case]:
    """A subset in which every pair of two settings' values occurs: greedy, deterministic."""
    remaining = {pair for case in all_cases() for pair in _pairs(case)}
    chosen: list[Case] = []
    while remaining:
        best = max(all_cases(), key=lambda case: len(_pairs(case) & remaining))
        chosen.append(best)
        remaining -= _pairs(best)
    return chosen


def _pairs(case: Case) -> set[tuple[object, ...]]:
    values = list(enumerate((case.chunk, case.cache, case.block_size, case.pool)))
    return {(a, b) for index, a in enumerate(values) for b in values[index + 1 :]}


@dataclass(frozen=True)
class Job:
    """A prompt and how many tokens to generate."""

    prompt: list[int]
    max_tokens: int


def make_jobs(count: int, vocab_size: int, seed: int = 0) -> list[Job]:
    """Prompts of 1 to 60 tokens, about half with one of three common prefixes."""
    draw = random.Random(seed)

    def ids(length: int) -> list[int]:
        return [draw.randrange(vocab_size) for _ in range(length)]

    prefixes = [ids(32), ids(17), ids(40)]
    jobs = []
    for index in range(count):
        prefix = draw.choice(prefixes) if index % 2 else []
        own = ids(draw.randrange(1, 20 if prefix else 60))
        jobs.append(Job(prefix + own, draw.randrange(4, 24)))
    return jobs


def reference_tokens(folder: Path, jobs: Sequence[Job]) -> list[list[int]]:
    """What transformers.generate gives for each prompt alone."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    results = []
    for job in jobs:
        ids = torch.tensor([job.prompt])
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=job.max_tokens,
                do_sample=False,
            )
        results.append(output[0, len(job.prompt) :].tolist())
    return results


@dataclass(frozen=True)
class Outcome:
    """Tokens of each job, and what the engine counted while it made them."""

    tokens: list[list[int]]
    counters: dict[str, float]


def run_case(folder: Path, case: Case, jobs: Sequence[Job], **more: object) -> Outcome:
    """Generate all jobs in one engine, with more settings; with a warm cache, twice."""
    params = [SamplingParams(temperature=0.0, max_tokens=job.max_tokens, ignore_eos=True) for job in jobs]
    prompts = [{"prompt_token_ids": job.prompt} for job in jobs]
    settings: dict[str, object] = {"dtype": "float64", **more}
    if case.pool == "scarce":  # room for one request of the longest context and a bit
        settings["num_kv_blocks"] = -(-MAX_MODEL_LEN // case.block_size) + max(1, 24 // case.block_size)
    if case.chunk is not None:
        settings["max_num_batched_tokens"] = case.chunk
    with LLM(
        folder,
        skip_tokenizer_init=True,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=128 if case.cache == "warm" else 16,  # the pool holds no more than they need
        block_size=case.block_size,
        enable_prefix_caching=case.cache != "off",
        enable_chunked_prefill=case.chunk is not None,
        **settings,
    ) as llm:
        if case.cache == "warm":
            llm.generate(prompts, params, use_tqdm=False)
        before = values(llm.get_metrics())
        outputs = llm.generate(prompts, params, use_tqdm=False)
        after, gauges = values(llm.get_metrics()), values(llm.get_metrics(), "gauge")
    return Outcome(
        [list(output.outputs[0].token_ids) for output in outputs],
        {name: after[name] - before.get(name, 0.0) for name in after} | gauges,
    )


def values(metrics: Sequence[Metric], kind: str = "counter") -> dict[str, float]:
    """Unlabelled metrics of a kind by name, without the prefix."""
    chosen = [metric for metric in metrics if metric.kind == kind and not metric.labels]
    return {metric.name.removeprefix("quire:"): metric.value for metric in chosen}


def assert_exercised(case: Case, jobs: Sequence[Job], outcome: Outcome) -> None:
    """Check by counters that the case did what its name says."""
    seen = outcome.counters
    longest = max(len(job.prompt) for job in jobs)
    if case.pool == "scarce":
        assert seen["num_preemptions"] > 0, "nothing was preempted"
    else:
        assert seen["num_preemptions"] == 0
    if case.cache == "off":
        assert seen["prefix_cache_hits"] == 0
    elif case.cache == "warm" and case.pool == "ample":
        assert seen["prefix_cache_hits"] >= seen["prompt_tokens"] * 0.5, "the warm cache was hardly hit"
    else:
        assert seen["prefix_cache_hits"] > 0, "the prefix cache was not hit"
    if case.chunk is not None and longest > case.chunk and case.cache != "warm":
        assert seen["num_prefill_chunks"] > len(jobs), "no prompt was computed in parts"
    assert seen["max_batch_rows"] > 1 or case.chunk == 1, "requests never ran together"
