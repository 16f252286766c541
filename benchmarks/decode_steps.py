"""Requests that run together in an engine, and the times of steps in which each of them gets one token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from common import greedy, growth, metrics
from quire import LLM
from workloads import random_ids

WARM_UP_STEPS = 3
_HOST_COUNTERS = ("schedule_seconds", "build_seconds", "update_seconds", "emit_seconds")


@dataclass(slots=True, frozen=True)
class MeasuredSteps:
    """Decode steps in a row, all of the same requests.

    Attributes:
        seconds: of each step. contexts: tokens of each request in the middle one, before it.
        host_s: seconds of all steps in planning, building batches, taking in and handing out, by part.
    """

    seconds: list[float]
    contexts: list[int]
    host_s: dict[str, float]

    def share(self, *parts: str) -> float:
        """The share of these parts of `host_s` in the steps' time."""
        return sum(self.host_s[part] for part in parts) / sum(self.seconds)


@dataclass(slots=True)
class RunningRequests:
    """Requests of random ids that run until they are dropped.

    Args:
        llm: its `max_num_seqs` and KV cache must have room: a step in which a request got none raises.
        vocab: ids are drawn below it.
    """

    llm: LLM
    vocab: int
    seed: int = 0
    _prompts: dict[str, int] = field(default_factory=dict)
    _rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def __len__(self) -> int:
        """How many run."""
        return len(self._prompts)

    def draw(self, num_tokens: int) -> list[int]:
        """A prompt that nobody has had."""
        return random_ids(self._rng, num_tokens, self.vocab)

    def add(self, prompts: Sequence[list[int]], num_outputs: int) -> float:
        """Submit prompts and step until each has a token; the seconds that this took."""
        start = time.perf_counter()
        added = [self.llm.engine.add_request(prompt, greedy(num_outputs)) for prompt in prompts]
        self._prompts |= {name: len(prompt) for name, prompt in zip(added, prompts, strict=True)}
        waiting = set(added)
        while waiting:
            waiting -= set(self.llm.engine.step())
        return time.perf_counter() - start

    def contexts(self) -> list[int]:
        """Tokens of each request whose keys and values the next step reads."""
        output = self.llm.engine.output
        return [length + len(output(name).outputs[0].token_ids) - 1 for name, length in self._prompts.items()]

    def measure(self, num_steps: int) -> MeasuredSteps:
        """Time steps, after a few that are not counted; raises RuntimeError where one was something else."""
        for _ in range(WARM_UP_STEPS):
            self.llm.engine.step()
        contexts = self.contexts()
        before = metrics(self.llm)
        seconds = []
        for _ in range(num_steps):
            start = time.perf_counter()
            self.llm.engine.step()
            seconds.append(time.perf_counter() - start)
        grown = growth(before, metrics(self.llm))
        if grown["num_scheduled_tokens"] != num_steps * len(self):
            raise RuntimeError("not every request got one token in every step: the times would mean nothing")
        host_s = {name.removesuffix("_seconds"): grown[name] for name in _HOST_COUNTERS}
        return MeasuredSteps(seconds, [context + num_steps // 2 for context in contexts], host_s)

    def drop(self) -> None:
        """End all requests; their blocks are free, and stay in the prefix cache until they are needed."""
        for name in self._prompts:
            self.llm.engine.discard(name)
        self._prompts.clear()
