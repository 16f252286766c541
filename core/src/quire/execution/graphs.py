"""Steps of decodes as captured graphs: one launch instead of hundreds.

A graph launches the same kernels with the same sizes and addresses each time. What differs from step to step lies
in the batch's persistent buffers, and a step of fewer rows than a graph has is filled up with padding.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.errors import CaptureError
from quire.api.protocols import AttentionBackend, CaptureRequest, Model
from quire.execution.forward import run_layers
from quire.execution.graph_backend import graph_backend
from quire.execution.graph_device import GraphDevice, TorchGraphs
from quire.execution.graph_rows import GraphBuffers, ladder

_MOST_CHECKED_TOKENS = 4096
"""Longest context of the steps that are compared here."""


class CudaGraphCapture:
    """Captures a model's layers for steps of decodes, in one graph for each number of rows of a ladder.

    Args:
        make_graphs: gives the graphs of a device.
    """

    def __init__(self, make_graphs: Callable[[torch.device], GraphDevice] = TorchGraphs) -> None:
        self._make_graphs = make_graphs

    def capture(self, request: CaptureRequest) -> CudaGraphSteps:
        """See StepCapture.

        Each graph is compared, bit by bit, with the plain run of as many rows, padding included.

        Raises:
            CaptureError: the attention backend, or something else in the model, cannot be captured.
        """
        with torch.inference_mode():
            first = request.sample([(1, 1)])
            backend = graph_backend(request.model, first.block_size)
            sizes = ladder(min(request.max_rows, request.max_tokens))
            buffers = GraphBuffers(first, sizes[-1])
            plain = _PlainSteps(request.model, backend, buffers)
            graphs = self._make_graphs(first.seq_lens.device)
            captured = _capture_all(sizes, plain, graphs, request.progress)
            steps = CudaGraphSteps(captured, buffers, graphs, request.progress)
            for rows, size in _checked(sizes, request, buffers.block_size):
                _compare(steps, plain, request, rows, size)
        return steps


class CudaGraphSteps:
    """Captured layers, for steps of decodes only; see CapturedSteps.

    The head is run call by call: while the layers' graph runs, the host has the time to launch it.

    Kernels choose how they add up by the number of rows, so a step that is filled up has the bits of the plain
    step of as many rows. Until `trim`, which ends the comparisons with plain steps, only steps that need no
    padding are replayed; the others were compared when they were captured.
    """

    def __init__(
        self, captured: _Captured, buffers: GraphBuffers, graphs: GraphDevice, progress: Callable[[], None]
    ) -> None:
        self._captured = captured
        self._sizes = sorted(captured.graphs)
        self._buffers = buffers
        self._graphs = graphs
        self._progress = progress
        self._is_padding = False

    def layers(self, batch: ForwardBatch) -> Tensor | None:
        """See CapturedSteps.

        Raises:
            CaptureError: the batch does not lie in the buffers that the graphs read.
        """
        num_rows = batch.num_requests
        if batch.num_decode_rows != num_rows or num_rows > self._sizes[-1]:
            return None
        size = self._sizes[bisect_left(self._sizes, num_rows)]
        if size != num_rows and not self._is_padding:
            return None
        return self.replay(batch, size)

    def replay(self, batch: ForwardBatch, size: int) -> Tensor:
        """The hidden states [T, E] of a step of decodes, by the graph of `size` rows, which are no fewer."""
        self._buffers.check(batch)
        num_rows = batch.num_requests
        self._graphs.replay(self._captured.graphs[size])
        self._progress()
        return self._captured.hidden[:num_rows]

    def logits(self, hidden: Tensor, batch: ForwardBatch) -> Tensor | None:
        """See CapturedSteps: None."""
        return None

    def trim(self) -> None:
        """See CapturedSteps; from now on steps are filled up."""
        self._is_padding = True

    def describe(self) -> str:
        """See CapturedSteps."""
        captured = self._captured
        return (
            f"{len(self._sizes)} graphs of decodes, up to {self._sizes[-1]} rows, "
            f"{captured.num_bytes / 1e6:.0f} MB, captured in {captured.seconds:.1f} s"
        )


@dataclass(slots=True, frozen=True)
class _Captured:
    """Graphs by their rows, and what all of them write: [most rows, E]."""

    graphs: Mapping[int, object]
    hidden: Tensor
    num_bytes: int
    seconds: float


@dataclass(slots=True, frozen=True)
class _PlainSteps:
    """Steps of decodes, as they lie in the buffers, call by call."""

    model: Model
    backend: AttentionBackend
    buffers: GraphBuffers

    def run(self, size: int) -> Tensor:
        """The hidden states [size, E]. What the backend prepares is part of it: of a graph too."""
        batch = self.buffers.step(size)
        batch.attention = self.backend.prepare(batch)
        return run_layers(self.model, batch)

    def write(self, size: int, hidden: Tensor) -> None:
        """The same to the first rows of `hidden`: graphs that keep no tensor can share all memory."""
        hidden[:size].copy_(self.run(size))


def _capture_all(
    sizes: list[int], plain: _PlainSteps, graphs: GraphDevice, progress: Callable[[], None]
) -> _Captured:
    """Capture a graph of each size, the largest first: the others find all memory in the pool."""
    begin = time.perf_counter()
    hidden = torch.empty_like(plain.run(sizes[-1]))
    graphs.synchronize()
    before, pool = graphs.memory(), graphs.pool()
    captured = {}
    for size in reversed(sizes):
        run = partial(plain.write, size, hidden)
        try:
            graphs.warm_up(run)
            captured[size] = graphs.capture(run, pool)
        except RuntimeError as error:
            cause = error.__context__ or error  # what ends a failed capture only says that it failed
            raise CaptureError(f"a step of {size} decodes cannot be captured: {cause}") from error
        progress()
    graphs.synchronize()
    num_bytes = max(0, graphs.memory() - before)
    return _Captured(captured, hidden, num_bytes, time.perf_counter() - begin)


def _checked(sizes: list[int], request: CaptureRequest, block_size: int) -> Iterator[tuple[int, int]]:
    """Rows of steps that are compared, and the sizes of their graphs: full ones, and such with most padding.

    No more rows than there are blocks for: rows that shared one would write the same slots.
    """
    most = min(request.max_num_seqs, max(1, request.max_context // block_size))
    for previous, size in pairwise([0, *sizes]):
        for rows in sorted({min(previous + 1, most), min(size, most)}):
            yield rows, size


def _compare(
    steps: CudaGraphSteps, plain: _PlainSteps, request: CaptureRequest, rows: int, size: int
) -> None:
    """CaptureError where a replayed step gives anything but the bits of the plain one."""
    batch = request.sample(_contexts(rows, request.max_context, plain.buffers.block_size))
    found = steps.replay(batch, size).clone()
    expected = run_layers(request.model, batch) if rows == size else plain.run(size)[:rows]
    if not torch.equal(_bits(found), _bits(expected)):
        raise CaptureError(f"{rows} decodes differ from the model's own when the graph of {size} is replayed")


def _contexts(rows: int, max_context: int, block_size: int) -> list[tuple[int, int]]:
    """Rows of one token with contexts of many lengths, the first one's the longest."""
    blocks = max(1, max_context // block_size // rows)
    longest = min(blocks * block_size, max_context, _MOST_CHECKED_TOKENS)
    return [(1, longest), *((1, 1 + 37 * row % longest) for row in range(1, rows))]


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)
