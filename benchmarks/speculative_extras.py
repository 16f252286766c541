"""Beside the tables of speculation: transformers' prompt lookup, what proposing costs, how often noise agrees."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from common import Bench, greedy
from quire import LLM
from quire.api.request import SamplingParams
from quire.api.speculation import Drafter, DraftRequest
from quire.api.step import SlotAssignment
from quire.execution.sampler import Sampler
from quire.execution.sampling_state import SamplingState
from speculative_runs import run_asks
from speculative_workloads import TINY, Ask
from workloads import random_ids

NUM_REQUESTS = 64
NUM_TOKENS = 2000
_NUM_STEPS = 40


def compare_with_transformers(
    plain: LLM, drafted: LLM, rounds: Sequence[Sequence[Ask]], num_drafts: int
) -> dict[str, object]:
    """One request at a time on the same work: tokens per second of transformers and of Quire, both ways."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.bfloat16)
    model = loaded.eval()
    rates: dict[str, list[float]] = {"hf": [], "hf_prompt_lookup": [], "quire": [], "quire_ngram": []}
    for number, asks in enumerate([rounds[0][:1], *rounds]):  # the first to warm up
        found = {
            "hf": _hf_rate(model, asks, None),
            "hf_prompt_lookup": _hf_rate(model, asks, num_drafts),
            "quire": run_asks(plain, asks, 1).tokens_per_s,
            "quire_ngram": run_asks(drafted, asks, 1).tokens_per_s,
        }
        for name, rate in found.items() if number else ():
            rates[name].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        **{f"{name}_tokens_per_s": round(value, 1) for name, value in medians.items()},
        "hf_speedup_by_prompt_lookup": round(medians["hf_prompt_lookup"] / medians["hf"], 2),
        "quire_speedup_by_ngram": round(medians["quire_ngram"] / medians["quire"], 2),
        "quire_ngram_over_hf_prompt_lookup": round(medians["quire_ngram"] / medians["hf_prompt_lookup"], 2),
    }


def _hf_rate(model: Any, asks: Sequence[Ask], num_drafts: int | None) -> float:
    extra = {} if num_drafts is None else {"prompt_lookup_num_tokens": num_drafts}
    num_tokens, begin = 0, time.perf_counter()
    for ask in asks:
        ids = torch.tensor([ask.prompt])
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=ask.max_tokens,
                do_sample=False,
                **extra,
            )
        num_tokens += output.shape[1] - ids.shape[1]
    return num_tokens / (time.perf_counter() - begin)


def propose_cost(bench: Bench, drafters: Sequence[str], num_drafts: int) -> dict[str, object]:
    """Time of proposing for 64 requests of 2,000 tokens against a decode step of 64 requests.

    The step's requests are short, so that the share is more than it would be at equal length.
    """
    step_s = _step_seconds(bench)
    results: dict[str, object] = {"step_ms": round(step_s * 1e3, 3)}
    for name in drafters:
        config = {"method": name, "num_speculative_tokens": num_drafts, "adaptive": False}
        with LLM("tiny", speculative_config=config, max_num_seqs=1, max_model_len=256) as llm:
            guarded = llm.engine._executor.runner._speculator.drafter  # type: ignore[attr-defined]  # a look inside
            seconds = _propose_seconds(cast(Drafter, guarded), bench.shape.vocab, num_drafts)
        median = statistics.median(seconds)
        results[name] = {
            "propose_ms": round(median * 1e3, 3),
            "most_ms": round(max(seconds) * 1e3, 3),
            "share_of_step": round(median / step_s, 4),
        }
    return results


def _step_seconds(bench: Bench) -> float:
    """Median time of a decode step of 64 requests without drafts."""
    ids = np.random.default_rng(0)
    with bench.open_llm(max_num_seqs=NUM_REQUESTS, max_model_len=256) as llm:
        for _ in range(NUM_REQUESTS):
            llm.engine.add_request(random_ids(ids, 32, bench.shape.vocab), greedy(_NUM_STEPS))
        times = []
        while llm.engine.has_unfinished:
            begin = time.perf_counter()
            llm.engine.step()
            times.append(time.perf_counter() - begin)
    return statistics.median(times[4:-4])


def _propose_seconds(drafter: Drafter, vocab: int, num_drafts: int) -> list[float]:
    """Times of single calls for all requests, each a token longer than before."""
    texts = [_text(index, vocab) for index in range(NUM_REQUESTS)]
    seconds = []
    for step in range(_NUM_STEPS):
        requests = [
            DraftRequest(f"r{i}", text[: NUM_TOKENS + step], 200, num_drafts, SamplingParams())
            for i, text in enumerate(texts)
        ]
        begin = time.perf_counter()
        drafter.propose(requests)
        seconds.append(time.perf_counter() - begin)
    print(f"first call, which takes in all tokens: {seconds[0] * 1e3:.1f} ms", file=sys.stderr)
    return seconds[1:]


def _text(seed: int, vocab: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Tokens half of which are copies of earlier ones: bounded below the embedded model's vocabulary."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, min(vocab, 1024), size=NUM_TOKENS + _NUM_STEPS).astype(np.int32)
    for start in range(100, len(tokens) - 20, 40):
        source = int(rng.integers(0, start - 20))
        tokens[start : start + 20] = tokens[source : source + 20]
    return tokens


def agreement(num_draws: int = 20_000, vocab: int = 256) -> list[dict[str, object]]:
    """How often a drafter with the target's noise draws the target's token, and the most that is possible.

    Pairs of distributions: the target's logits are normal with this spread, the drafter's are off by that.
    """
    params = SamplingParams(temperature=1.0)
    state = SamplingState(num_draws, vocab)
    for slot in range(num_draws):
        state.assign(slot, SlotAssignment(slot, str(slot), [0], 1, params, slot, frozenset()))
    found: list[dict[str, object]] = []
    for spread_of_target, error in ((1.0, 0.3), (3.0, 0.3), (3.0, 1.0), (6.0, 1.0), (6.0, 3.0)):
        generator = torch.Generator().manual_seed(0)
        target = torch.randn(vocab, generator=generator, dtype=torch.float64) * spread_of_target
        drafter = target + error * torch.randn(vocab, generator=generator, dtype=torch.float64)
        tokens = [
            np.array(Sampler().draw(logits.expand(num_draws, -1), range(num_draws), state).token_ids)
            for logits in (target, drafter)
        ]
        overlap = float(torch.minimum(target.softmax(-1), drafter.softmax(-1)).sum())
        independent = float((target.softmax(-1) * drafter.softmax(-1)).sum())
        found.append(
            {
                "spread": spread_of_target,
                "error": error,
                "same_noise": round(float((tokens[0] == tokens[1]).mean()), 3),
                "optimum": round(overlap, 3),
                "independent_noise": round(independent, 3),
            }
        )
    return found
