"""Runs of one workload with and without drafts, interleaved, and what they are summed up to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from common import growth, metrics, spread
from quire import LLM
from speculative_workloads import Ask

PLAIN = "none"


@dataclass(slots=True)
class Run:
    """One pass over a workload.

    Attributes:
        outputs: token ids by request. grown: what the engine's counters grew by.
    """

    wall_s: float
    outputs: list[list[int]]
    grown: dict[str, float]

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second of wall time."""
        return sum(map(len, self.outputs)) / self.wall_s


def run_asks(llm: LLM, asks: Sequence[Ask], concurrency: int) -> Run:
    """Run all requests, so many at a time: where one ends the next begins. No prefix is cached before."""
    llm.reset_prefix_cache()
    engine, before = llm.engine, metrics(llm)
    waiting = iter(enumerate(asks))
    running: dict[str, int] = {}
    outputs: list[list[int]] = [[] for _ in asks]
    num_left = len(asks)
    begin = time.perf_counter()
    while num_left:
        while len(running) < concurrency and (following := next(waiting, None)) is not None:
            index, ask = following
            running[engine.add_request(ask.prompt, ask.params)] = index
        for name in engine.step():
            if engine.is_finished(name):
                output = engine.pop_output(name)
                if output.error is not None:
                    raise output.error
                outputs[running.pop(name)] = list(output.outputs[0].token_ids)
                num_left -= 1
    wall_s = time.perf_counter() - begin
    return Run(wall_s, outputs, growth(before, metrics(llm)))


@dataclass(slots=True)
class Tally:
    """What a variant did in one cell of the table, over the rounds.

    Attributes:
        ratios: to the runs without drafts just before and after. num_diverged: requests with another
            output, of `num_requests`.
    """

    rates: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    grown: dict[str, float] = field(default_factory=dict)
    wall_s: float = 0.0
    num_diverged: int = 0
    num_requests: int = 0

    def add(self, run: Run, plain: Sequence[Run]) -> None:
        """Take in a run, and those without drafts around it."""
        self.rates.append(run.tokens_per_s)
        self.ratios.append(run.tokens_per_s / statistics.mean(other.tokens_per_s for other in plain))
        for name, value in run.grown.items():
            self.grown[name] = self.grown.get(name, 0.0) + value
        self.wall_s += run.wall_s
        pairs = zip(run.outputs, plain[0].outputs, strict=True)
        self.num_diverged += sum(found != expected for found, expected in pairs)
        self.num_requests += len(run.outputs)

    def to_json(self) -> dict[str, object]:
        """The figures of the record."""
        found = {name.removeprefix("spec_decode_"): value for name, value in self.grown.items()}
        num_drafts, proposed = found.get("num_drafts", 0.0), found.get("num_draft_tokens", 0.0)
        accepted = found.get("num_accepted_tokens", 0.0)
        return {
            "tokens_per_s": spread(self.rates, 1),
            "ratio": spread(self.ratios, 3),
            "acceptance_rate": round(accepted / proposed, 3) if proposed else None,
            "acceptance_length": round(1 + accepted / num_drafts, 2) if num_drafts else None,
            "draft_tokens": int(proposed),
            "propose_share": round(found.get("propose_seconds", 0.0) / self.wall_s, 4),
            "diverged": f"{self.num_diverged} of {self.num_requests}",
        }


def interleaved(
    engines: Mapping[str, LLM], rounds: Sequence[Sequence[Ask]], concurrency: int
) -> dict[str, Tally]:
    """Run each round's requests on all engines; after every two of them, on the one without drafts.

    Args:
        engines: by variant, `PLAIN` among them. The order of the others rotates from round to round.
    """
    variants = [name for name in engines if name != PLAIN]
    tallies = {name: Tally() for name in (PLAIN, *variants)}
    for number, asks in enumerate(rounds):
        shift = number % max(1, len(variants))
        before = run_asks(engines[PLAIN], asks, concurrency)
        tallies[PLAIN].add(before, [before])
        for pair in _pairs(variants[shift:] + variants[:shift]):
            runs = {name: run_asks(engines[name], asks, concurrency) for name in pair}
            after = run_asks(engines[PLAIN], asks, concurrency)
            for name, run in runs.items():
                tallies[name].add(run, [before, after])
            tallies[PLAIN].add(after, [before])
            before = after
    return tallies


def _pairs(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), 2):
        yield names[start : start + 2]
