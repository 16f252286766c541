"""Timing on a GPU (or, to try the scripts, a CPU): replays of captured work, ceilings, and a deadline."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from roofline import MachineLimits

Work = Callable[[], object]
DISTINCT_BYTES = 512 << 20
"""That a measurement goes through: several times the cache of a large GPU."""
Record = dict[str, object]
"""A measurement: "case", and its figures."""


class Deadline:
    """When a section should end."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds until then; negative afterwards."""
        return self._end - time.monotonic()


class Timer:
    """Times work on one device.

    Args:
        device: "cuda" or "cpu". repeats: of each measurement; the median counts.
    """

    def __init__(self, device: str, repeats: int = 10) -> None:
        self.device = device
        self.repeats = repeats

    def median_s(self, work: Work) -> float:
        """The time of `work`, on a GPU without that of launching it where it can be captured."""
        work()
        if not self.device.startswith("cuda"):
            return statistics.median(_wall_s(work) for _ in range(self.repeats))
        work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        graph.replay()
        return statistics.median(self._event_s(graph.replay) for _ in range(self.repeats))

    def _event_s(self, work: Work) -> float:
        start, end = _event(), _event()
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


def measure_ceilings(timer: Timer, *, is_quick: bool) -> Iterator[Record]:
    """Bandwidth of reading, of copying and of `a = b + 3 c`; the rate of a product of large bfloat16 matrices."""
    count = 1 << (20 if is_quick else 28)
    size = 256 if is_quick else 8192
    a, b, c = (torch.full((count,), float(value), device=timer.device) for value in range(3))
    for case, num_bytes, work in (
        ("read", 4 * count, a.sum),
        ("copy", 8 * count, lambda: a.copy_(b)),
        ("triad", 12 * count, lambda: torch.add(b, c, alpha=3.0, out=a)),
    ):
        seconds = timer.median_s(work)
        yield {"case": case, "seconds": seconds, "bytes_per_s": num_bytes / seconds}
    left, right = (torch.randn(size, size, device=timer.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = timer.median_s(lambda: torch.mm(left, right))
    yield {"case": "product", "seconds": seconds, "flops_per_s": 2 * size**3 / seconds}


def limits_of(ceilings: list[Record]) -> MachineLimits:
    """What the ceilings say; raises KeyError where one is missing."""
    rates = {
        str(record["case"]): float(str(record.get("bytes_per_s", record.get("flops_per_s"))))
        for record in ceilings
    }
    return MachineLimits(max(rates["read"], rates["copy"]), rates["triad"], rates["product"])


def each_once(works: Sequence[Work]) -> Work:
    """All of them, one after the other."""

    def run() -> None:
        for work in works:
            work()

    return run


def fraction(least_s: float, seconds: float) -> float:
    """How much of the limit was reached."""
    return round(least_s / seconds, 4)


def _wall_s(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch has no types there
