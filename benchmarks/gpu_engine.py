"""The engine on a GPU: decode steps, prompts and offline throughput, beside the least time of each."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common import greedy, growth, host_share, metrics
from decode_steps import RunningRequests
from gpu_models import DECODERS, QUICK_DECODERS, Decoder, offline_floor_s, random_model, step_floor_s
from gpu_timing import Deadline, Record, fraction
from quire import LLM
from roofline import MachineLimits

MIN_LEFT_S = 5.0
"""Below this nothing more is begun."""
OFFLINE_MARGIN_S = 2.0
"""So long before the deadline an offline run is cut."""


@dataclass(slots=True, frozen=True)
class Plan:
    """What is measured.

    Attributes:
        batches: of decode steps, at a context of `context`. prompts: numbers and lengths of prefills.
        offline_requests: at once; prompts and outputs are drawn from `offline_lengths`, first to last.
    """

    batches: tuple[int, ...]
    context: int
    num_steps: int
    prompts: tuple[tuple[int, int], ...]
    offline_requests: int
    offline_lengths: tuple[int, int]

    @property
    def max_model_len(self) -> int:
        """Room for the longest request."""
        longest = max(length for _, length in self.prompts)
        return max(longest, 2 * self.offline_lengths[1], self.context) + 128


FULL = {
    "0.6B": Plan((1, 32, 256), 1024, 30, ((1, 8192), (8, 1024)), 256, (100, 1024)),
    "8B": Plan((1, 32, 256), 1024, 30, ((1, 8192), (8, 1024)), 256, (1000, 1000)),
}
QUICK = dict.fromkeys(FULL, Plan((1, 2), 32, 4, ((1, 64), (2, 32)), 4, (8, 16)))


@dataclass(slots=True, frozen=True)
class EngineBench:
    """One model in one engine."""

    llm: LLM
    decoder: Decoder
    plan: Plan
    limits: MachineLimits
    deadline: Deadline

    def decode(self, batch: int) -> Record:
        """A step of `batch` requests."""
        running = RunningRequests(self.llm, self.decoder.vocab, seed=batch)
        prompts = [running.draw(self.plan.context) for _ in range(batch)]
        running.add(prompts, batch + 2 * self.plan.num_steps + 16)
        steps = running.measure(self.plan.num_steps)
        running.drop()
        step_s = statistics.median(steps.seconds)
        floor_s = step_floor_s(self.decoder, self.limits, [(context, 1) for context in steps.contexts])
        host_s = sum(steps.host_s.values()) / self.plan.num_steps
        return {
            "case": f"decode, batch {batch}, context {self.plan.context}",
            "seconds": step_s,
            "limit_s": floor_s,
            "fraction": fraction(floor_s, step_s),
            "tokens_per_s": round(batch / step_s, 1),
            "host_s": round(host_s, 6),
        }

    def prefill(self, count: int, length: int, repeats: int = 3) -> Record:
        """`count` new prompts of `length` tokens, to the first token of each."""
        seconds = []
        for repeat in range(repeats + 1):
            running = RunningRequests(self.llm, self.decoder.vocab, seed=10_000 + 100 * count + repeat)
            taken = running.add([running.draw(length) for _ in range(count)], 2)
            running.drop()
            seconds.append(taken)
        best_s = statistics.median(seconds[1:])  # the first may compile
        floor_s = step_floor_s(self.decoder, self.limits, [(0, length)] * count)
        return {
            "case": f"prefill, {count} x {length}",
            "seconds": best_s,
            "limit_s": floor_s,
            "fraction": fraction(floor_s, best_s),
            "tokens_per_s": round(count * length / best_s, 1),
        }

    def offline(self) -> Record:
        """Requests that arrive together, until all have ended or the time is up."""
        rng = np.random.default_rng(0)
        low, high = self.plan.offline_lengths
        prompts, outputs = rng.integers(low, high + 1, size=(2, self.plan.offline_requests)).tolist()
        running = RunningRequests(self.llm, self.decoder.vocab, seed=20_000)
        drawn = [running.draw(length) for length in prompts]
        before, start = metrics(self.llm), time.perf_counter()
        ids = [
            self.llm.engine.add_request(prompt, greedy(count))
            for prompt, count in zip(drawn, outputs, strict=True)
        ]
        while self.llm.engine.has_unfinished and self.deadline.left_s > OFFLINE_MARGIN_S:
            self.llm.engine.step()
        wall_s = time.perf_counter() - start
        is_whole = not self.llm.engine.has_unfinished
        grown = growth(before, metrics(self.llm))
        for name in ids:
            self.llm.engine.discard(name)
        record: Record = {
            "case": f"offline, {len(ids)} requests, {low} to {high} in and out",
            "seconds": wall_s,
            "tokens_per_s": round(grown["generation_tokens"] / wall_s, 1),
            "is_whole": is_whole,
            "host_share": round(host_share(grown, wall_s), 4),
            "num_preemptions": grown["num_preemptions"],
        }
        if is_whole:
            floor_s = offline_floor_s(self.decoder, self.limits, prompts, outputs)
            record |= {"limit_s": floor_s, "fraction": fraction(floor_s, wall_s)}
        return record


def measure_engine(
    name: str, device: str, limits: MachineLimits, deadline: Deadline, *, is_quick: bool
) -> Iterator[Record]:
    """All of one model; decode first, then prompts, then offline."""
    decoder, plan = (QUICK_DECODERS if is_quick else DECODERS)[name], (QUICK if is_quick else FULL)[name]
    settings: dict[str, Any] = {"num_kv_blocks": 256} if is_quick else {}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        llm = LLM(
            folder,
            host=random_model(decoder, Path(folder).resolve()),
            dtype="bfloat16",
            device=device,
            skip_tokenizer_init=True,
            max_num_seqs=max(*plan.batches, plan.offline_requests),
            max_model_len=plan.max_model_len,
            max_num_batched_tokens=8192,
            **settings,
        )
        with llm:
            yield {"case": "load", "seconds": time.perf_counter() - start}
            bench = EngineBench(llm, decoder, plan, limits, deadline)
            yield from _cases(bench, plan)


def _cases(bench: EngineBench, plan: Plan) -> Iterator[Record]:
    works: list[tuple[str, Callable[[], Record]]] = [
        *((f"decode, batch {batch}", partial(bench.decode, batch)) for batch in plan.batches),
        *(
            (f"prefill, {count} x {length}", partial(bench.prefill, count, length))
            for count, length in plan.prompts
        ),
        ("offline", bench.offline),
    ]
    for name, work in works:
        if bench.deadline.left_s > MIN_LEFT_S:
            yield work()
        else:
            yield {"case": name, "skipped": "no time left"}
