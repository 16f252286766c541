"""Runs of one workload with and without drafts, interleaved, and what they are summed up to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from common import growth, metrics, spread
from quire import LLM
from speculative_workloads import Ask

PLAIN = "none"


@dataclass(slots=True)
class Run:
    """One pass over a workload.

    Attributes:
        wall_s: until fewer requests ran than were to run. grown: what the engine's counters grew by until then.
        outputs: token ids by request, of all.
    """

    wall_s: float
    outputs: list[list[int]]
    grown: dict[str, float]

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second of wall time."""
        return self.grown["generation_tokens"] / self.wall_s


def run_asks(llm: LLM, asks: Sequence[Ask], concurrency: int) -> Run:
    """Run all requests, so many at a time: where one ends the next begins. No prefix is cached before."""
    llm.reset_prefix_cache()
    engine, before = llm.engine, metrics(llm)
    waiting = iter(enumerate(asks))
    running: dict[str, int] = {}
    outputs: list[list[int]] = [[] for _ in asks]
    wall_s, grown = 0.0, before
    begin = time.perf_counter()
    while True:
        while len(running) < concurrency and (following := next(waiting, None)) is not None:
            index, ask = following
            running[engine.add_request(ask.prompt, ask.params)] = index
        if len(running) < concurrency and not wall_s:
            wall_s = time.perf_counter() - begin
            grown = growth(before, metrics(llm))
        if not running:
            return Run(wall_s, outputs, grown)
        for name in engine.step():
            if engine.is_finished(name):
                output = engine.pop_output(name)
                if output.error is not None:
                    raise output.error
                outputs[running.pop(name)] = list(output.outputs[0].token_ids)


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
    engines: Mapping[str, LLM],
    make_asks: Callable[[], Sequence[Ask]],
    concurrency: int,
    seconds: float,
    tallies: dict[str, Tally],
) -> None:
    """Run the same requests on all engines; after every two of them, on the one without drafts.

    Args:
        engines: by variant, `PLAIN` among them. The order of the others rotates.
        make_asks: other requests with each call.
        seconds: the least that the runs without drafts take in sum: short ones are repeated.
        tallies: by variant; what the runs gave is added.
    """
    variants = [name for name in engines if name != PLAIN]
    taken = 0.0
    while taken < seconds:
        asks = make_asks()
        variants = [*variants[1:], *variants[:1]]
        run_asks(engines[PLAIN], asks, concurrency)  # the first run after a pause is slow
        before = run_asks(engines[PLAIN], asks, concurrency)
        tallies[PLAIN].add(before, [before])
        for pair in _pairs(variants):
            runs = {name: run_asks(engines[name], asks, concurrency) for name in pair}
            after = run_asks(engines[PLAIN], asks, concurrency)
            for name, run in runs.items():
                tallies[name].add(run, [before, after])
            tallies[PLAIN].add(after, [before])
            taken += after.wall_s
            before = after


def _pairs(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), 2):
        yield names[start : start + 2]
