"""What a run of the load generator amounts to: latencies, percentiles, goodput."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quire.api.errors import ConfigError

METRICS = ("ttft", "tpot", "itl", "e2el")
"""Time to first token, per further token, between tokens' arrivals, end to end; in ms."""


@dataclass(slots=True)
class RequestRecord:
    """What became of one request; times in seconds.

    Attributes:
        start_s: when it was sent, from the start of the run.
        arrivals_s: of each chunk with tokens, from the request's own start.
        end_s: of the whole answer, likewise.
        num_output_tokens: as the server said, else the number of chunks.
        error: why it failed; "" when it did not.
    """

    start_s: float
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    arrivals_s: list[float] = field(default_factory=list)
    end_s: float = 0.0
    error: str = ""

    def latencies_ms(self) -> dict[str, list[float]]:
        """By metric; empty lists where there is nothing to tell (no token, or a single one)."""
        arrivals = self.arrivals_s
        if not arrivals:
            return {"ttft": [], "tpot": [], "itl": [], "e2el": [1000 * self.end_s]}
        num_more = self.num_output_tokens - 1
        return {
            "ttft": [1000 * arrivals[0]],
            "tpot": [1000 * (arrivals[-1] - arrivals[0]) / num_more] if num_more > 0 else [],
            "itl": [1000 * (after - before) for before, after in zip(arrivals, arrivals[1:], strict=False)],
            "e2el": [1000 * self.end_s],
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """Between the two nearest ranks, linearly; 0 without values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def parse_goodput(texts: Sequence[str]) -> dict[str, float]:
    """Limits in ms by metric, from `ttft:200`.

    Raises:
        ConfigError: another form, an unknown metric, or a limit that is none.
    """
    limits: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition(":")
        try:
            limit = float(value)
        except ValueError:
            limit = -1.0
        if name not in ("ttft", "tpot", "e2el") or not limit > 0:
            raise ConfigError(f"--goodput {text!r}: give ttft:MS, tpot:MS or e2el:MS, with MS above 0")
        limits[name] = limit
    return limits


def is_good(record: RequestRecord, limits: Mapping[str, float]) -> bool:
    """Whether a request succeeded within every limit; what it has no figure for does not count."""
    latencies = record.latencies_ms()
    return not record.error and all(
        value <= limit for name, limit in limits.items() for value in latencies[name]
    )


def summarize(
    records: Sequence[RequestRecord],
    duration_s: float,
    percents: Sequence[float],
    limits: Mapping[str, float],
) -> dict[str, object]:
    """The figures of a run, in the names of vLLM's benchmark."""
    done = [record for record in records if not record.error]
    num_input = sum(record.num_prompt_tokens for record in done)
    num_output = sum(record.num_output_tokens for record in done)
    result: dict[str, object] = {
        "duration": duration_s,
        "completed": len(done),
        "failed": len(records) - len(done),
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": len(done) / duration_s,
        "output_throughput": num_output / duration_s,
        "total_token_throughput": (num_input + num_output) / duration_s,
        "max_concurrent_requests": max_concurrency(records),
    }
    if limits:
        result["request_goodput"] = sum(is_good(record, limits) for record in done) / duration_s
    latencies = [record.latencies_ms() for record in done]
    for name in METRICS:
        values = [value for entry in latencies for value in entry[name]]
        result[f"mean_{name}_ms"] = sum(values) / len(values) if values else 0.0
        result[f"median_{name}_ms"] = percentile(values, 50)
        for percent in percents:
            result[f"p{percent:g}_{name}_ms"] = percentile(values, percent)
    return result


def max_concurrency(records: Sequence[RequestRecord]) -> int:
    """Most requests that were under way at once."""
    events = [(record.start_s, 1) for record in records]
    events += [(record.start_s + record.end_s, -1) for record in records]
    running = most = 0
    for _, change in sorted(events):
        running += change
        most = max(most, running)
    return most
