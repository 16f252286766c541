"""What the machine does around a measurement: its bandwidth of the moment, and what others take of its cores."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

import psutil
import torch

from roofline import best_time, filled_buffers

PROBE_BYTES = 384 * 2**20
PROBE_S = 0.5
"""Three passes after a pause found two thirds of the bandwidth."""


class BandwidthProbe:
    """Measures the bandwidth of the moment, in half a second or so.

    Machines that are shared change theirs within minutes: a fraction of the limit needs the limit of then.

    Args:
        device: as torch calls it.
        num_bytes: of three buffers together; more than the caches hold.
    """

    def __init__(self, device: str = "cpu", num_bytes: int = PROBE_BYTES) -> None:
        self._count = num_bytes // 12
        self._buffers = filled_buffers(self._count, device)
        self._device = device

    def bytes_per_s(self, seconds: float = PROBE_S) -> float:
        """The better of reading and of `c = a + 3 b`, each the best of the passes that the time has room for."""
        a, b, c = self._buffers
        read_s = best_time(a.sum, self._device, seconds / 2)
        triad_s = best_time(lambda: torch.add(a, b, alpha=3.0, out=c), self._device, seconds / 2)
        return max(4 * self._count / read_s, 12 * self._count / triad_s)


@dataclass(slots=True, frozen=True)
class CpuShares:
    """Shares of all cores' time, 0 to 1.

    Attributes:
        seconds: that were watched.
        others: processes that have nothing to do with the measurement. stolen: the hypervisor.
        idle_peers: engines that wait for their turn, and should take nothing.
    """

    seconds: float
    others: float
    stolen: float
    idle_peers: float

    def to_json(self) -> dict[str, float]:
        """For the record."""
        return {
            "others_cpu": round(self.others, 4),
            "stolen_cpu": round(self.stolen, 4),
            "idle_peers_cpu": round(self.idle_peers, 4),
        }


class CpuMeter:
    """What others used of the cores between its making and `stop`.

    Args:
        own: the ids of processes that are not others, with all their children; none is a child of another.
        idle: ids of those of them that wait meanwhile, likewise with their children.
    """

    def __init__(self, own: Collection[int], idle: Collection[int] = ()) -> None:
        self._own, self._idle = own, idle
        self._start = time.perf_counter()
        self._before = self._now()

    def stop(self) -> CpuShares:
        """The shares since then."""
        seconds = time.perf_counter() - self._start
        busy, stolen, own, idle = (
            after - before for after, before in zip(self._now(), self._before, strict=True)
        )
        capacity = max(seconds, 1e-9) * (psutil.cpu_count() or 1)
        return CpuShares(seconds, max(0.0, busy - own) / capacity, stolen / capacity, idle / capacity)

    def _now(self) -> tuple[float, float, float, float]:
        times = psutil.cpu_times()
        busy = times.user + times.nice + times.system + times.irq + times.softirq
        return busy, times.steal, tree_cpu_s(self._own), tree_cpu_s(self._idle)


def tree_cpu_s(process_ids: Collection[int]) -> float:
    """CPU seconds of processes and all their children so far; of those that are gone: none."""
    total = 0.0
    for process_id in process_ids:
        try:
            root = psutil.Process(process_id)
            members = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for member in members:
            try:
                times = member.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
    return total


def wait_until_memory_stands(limit_s: float, step_s: float = 0.5, level: int = 1 << 20) -> bool:
    """Wait until this process's memory grows no more, `limit_s` at most; whether it stands."""
    process = psutil.Process()
    deadline = time.monotonic() + limit_s
    before = process.memory_info().rss
    while time.monotonic() < deadline:
        time.sleep(step_s)
        now = process.memory_info().rss
        if now - before < level:
            return True
        before = now
    return False


def wait_until_quiet(limit_s: float, own: Collection[int], level: float = 0.05) -> bool:
    """Wait until others take less than `level` of the cores, `limit_s` at most; whether they do."""
    deadline = time.monotonic() + limit_s
    while True:
        meter = CpuMeter(own)
        time.sleep(0.3)
        if meter.stop().others < level:
            return True
        if time.monotonic() >= deadline:
            return False
