"""Whether this process gets on: what a watchdog outside looks at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """Counts layers run and steps done, in no particular unit; it only grows while something happens."""

    count: int = 0


PROGRESS = Progress()
"""Of this process, which has one engine's thread; two would only make it grow faster."""
