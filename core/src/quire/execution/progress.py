"""Whether this process gets on: what a watchdog outside looks at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """Counts layers run, rows sampled, steps done, in no particular unit; it only grows while something happens.

    Whatever may last seconds in a step counts its parts: a step without a count for long is taken for a hang.
    """

    count: int = 0


PROGRESS = Progress()
"""Of this process, which has one engine's thread; two would only make it grow faster."""
