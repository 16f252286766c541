"""Graphs that any device has: what was captured runs again, and must launch just the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LaunchLog(TorchDispatchMode):
    """Notes all that is launched: names, numbers, shapes, strides, and addresses of what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[object] = []
        self._made: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.note(str(func), args, kwargs)
        given = {self._storage(x) for x in (*args, *kwargs.values()) if isinstance(x, Tensor)}
        found = func(*args, **kwargs)
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, Tensor):
                self._made |= {self._storage(tensor)} - given
        return found

    def note(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Of one launch."""
        values = [self._value(x) for x in args]
        self.entries.append((name, values, {key: self._value(x) for key, x in kwargs.items()}))

    def _value(self, x: object) -> object:
        if not isinstance(x, Tensor):
            return repr(x)
        is_made = self._storage(x) in self._made
        return (x.shape, x.stride(), x.dtype, "made" if is_made else x.data_ptr())

    @staticmethod
    def _storage(x: Tensor) -> int:
        return x.untyped_storage().data_ptr()


@dataclass
class RunAgain:
    """A "graph": what was run, and what it launched."""

    run: Callable[[], object]
    launches: list[object]
    pool: object


class RunAgainGraphs:
    """Graphs that run again what was captured: then all that it launches must be what it was."""

    active: LaunchLog | None = None

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.graphs: list[RunAgain] = []
        self.warmed_up: list[list[object]] = []
        self.num_replays = 0

    def pool(self) -> object:
        return object()

    def warm_up(self, run: Callable[[], object]) -> None:
        with self._logged() as log:
            run()
        self.warmed_up.append(log.entries)

    def capture(self, run: Callable[[], object], pool: object) -> object:
        with self._logged() as log:
            run()
        self.graphs.append(RunAgain(run, log.entries, pool))
        return self.graphs[-1]

    def replay(self, graph: object) -> None:
        assert isinstance(graph, RunAgain)
        self.num_replays += 1
        with self._logged() as log:
            graph.run()
        assert log.entries == graph.launches, "a graph would have launched something else"

    def synchronize(self) -> None:
        pass

    def memory(self) -> int:
        return 3_000_000 * len(self.graphs)

    @contextmanager
    def _logged(self) -> Iterator[LaunchLog]:
        with LaunchLog() as log:
            RunAgainGraphs.active = log
            try:
                yield log
            finally:
                RunAgainGraphs.active = None
