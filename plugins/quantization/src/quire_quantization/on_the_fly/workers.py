"""Threads that quantize chunks of weights side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import ref

import torch

Item = TypeVar("Item")

_MAX_THREADS = 8
"""Each holds some MB of copies, and more would wait for Python's lock."""


class Crew:
    """As many threads as torch has for an op, up to a limit; each runs its ops alone.

    Chunks are too small to be shared by threads op by op: they would wait for each other after every one,
    and for as long as another process has one of their cores.
    """

    def __init__(self) -> None:
        count = min(torch.get_num_threads(), _MAX_THREADS)
        self._threads = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))

    def run(self, function: Callable[[Item], None], items: Iterable[Item]) -> None:
        """Call the function with each item, in any order; raises what the first that fails raises."""
        count = torch.get_num_threads()
        try:
            for _ in self._threads.map(function, items):
                pass
        finally:
            torch.set_num_threads(
                count
            )  # a thread that began with 1 changed it for MKL and for later threads


class Crews:
    """One crew for all who ask, which lasts as long as one of them keeps it."""

    def __init__(self) -> None:
        self._current: ref[Crew] | None = None

    def get(self) -> Crew:
        """The crew that someone keeps, or a new one."""
        crew = None if self._current is None else self._current()
        if crew is None:
            crew = Crew()
            self._current = ref(crew)
        return crew
