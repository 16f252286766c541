"""Whether an engine's process gets on, for its heartbeat."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from quire.execution.progress import PROGRESS

COMPUTING_S = 40.0
"""For how long computing without a count passes for progress."""
COMPUTING_SHARE = 0.1
"""Of one processor's time: a process that waits for something takes less, one on a busy machine more."""


def cpu_seconds() -> float:
    """Processor time of this process, all threads, and of its children that have ended."""
    return sum(os.times()[:4])


@dataclass(slots=True)
class Pulse:
    """A number that grows as long as the engine gets on.

    That is as long as it counts (see `Progress`) and, for a while, as long as it computes: one op of a large
    batch takes long on a slow or busy machine, and so does compiling kernels when they are first used. Who
    waits for what never comes computes nothing.

    Args:
        count, cpu_s, now: what it reads.
    """

    count: Callable[[], int] = lambda: PROGRESS.count
    cpu_s: Callable[[], float] = cpu_seconds
    now: Callable[[], float] = time.monotonic
    _count: int = field(init=False, default=-1)
    _counted_at: float = field(init=False, default=0.0)
    _num_computing: int = field(init=False, default=0)
    _cpu_s: float = field(init=False, default=0.0)
    _read_at: float = field(init=False, default=0.0)

    def read(self) -> int:
        """The number; to be read now and then, as what the process did in between decides."""
        count, cpu_s, now = self.count(), self.cpu_s(), self.now()
        is_computing = cpu_s - self._cpu_s >= COMPUTING_SHARE * (now - self._read_at)
        if count != self._count:
            self._count, self._counted_at = count, now
        elif is_computing and now - self._counted_at < COMPUTING_S:
            self._num_computing += 1
        self._cpu_s, self._read_at = cpu_s, now
        return count + self._num_computing
