"""What captured steps ask of a device's graphs, and the graphs of CUDA and ROCm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, cast

import torch


class GraphDevice(Protocol):
    """Captures what a function launches, and launches it again: the same kernels, sizes and addresses."""

    def pool(self) -> object:
        """Memory that graphs may share, where they are never replayed at the same time."""
        ...

    def warm_up(self, run: Callable[[], object]) -> None:
        """Run a function as `capture` will, so that nothing is compiled or loaded while capturing."""
        ...

    def capture(self, run: Callable[[], object], pool: object) -> object:
        """The graph of what a function launches, which is not run; RuntimeError: it cannot be captured."""
        ...

    def replay(self, graph: object) -> None:
        """Launch a graph, behind everything that was launched before."""
        ...

    def synchronize(self) -> None:
        """Wait for everything that was launched."""
        ...

    def memory(self) -> int:
        """Bytes of the device's memory that are in use, by whomever, without what is only kept for later."""
        ...


class TorchGraphs:
    """The graphs of a CUDA or ROCm device; see GraphDevice.

    All are warmed up and captured on one stream of their own: they share what libraries keep for a stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types for it

    def pool(self) -> object:
        """See GraphDevice."""
        return torch.cuda.graph_pool_handle()

    def warm_up(self, run: Callable[[], object]) -> None:
        """See GraphDevice."""
        with self._on_stream():
            run()

    def capture(self, run: Callable[[], object], pool: object) -> object:
        """See GraphDevice."""
        captured = torch.cuda.CUDAGraph()
        with (
            self._on_stream(),  # torch.cuda.graph leaves its stream current where capturing fails
            torch.cuda.graph(
                captured,
                pool=pool,  # type: ignore[arg-type]  # a name that torch keeps to itself
                stream=self._stream,
                capture_error_mode="thread_local",  # other threads of this process may allocate meanwhile
            ),
        ):
            run()
        return captured

    def replay(self, graph: object) -> None:
        """See GraphDevice."""
        with torch.cuda.device(self._device):
            cast(torch.cuda.CUDAGraph, graph).replay()

    def synchronize(self) -> None:
        """See GraphDevice."""
        torch.cuda.synchronize(self._device)

    def memory(self) -> int:
        """See GraphDevice."""
        with torch.cuda.device(self._device):
            torch.cuda.empty_cache()
            free, total = torch.cuda.mem_get_info(self._device)
        return total - free

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Run on the capture stream: behind what was launched before, and before what is launched after."""
        with torch.cuda.device(self._device):
            outer = torch.cuda.current_stream()
            self._stream.wait_stream(outer)
            with torch.cuda.stream(self._stream):
                yield
            outer.wait_stream(self._stream)
