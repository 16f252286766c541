"""A model compiled by `torch.compile`: one graph of all layers, for steps of every size."""

from __future__ import annotations

import logging
import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._dynamo import lookup_backend
from torch._dynamo.decorators import mark_unbacked

from quire.api.batch import ForwardBatch
from quire.api.errors import CaptureError
from quire.api.protocols import Model
from quire.execution.forward import run_layers
from quire.execution.opaque import OpaqueCalls
from quire.execution.progress import PROGRESS

logger = logging.getLogger("quire")

Backend = str | Callable[..., Any]
"""As torch.compile takes it."""
Layers = Callable[[nn.Module, ForwardBatch], Tensor | None]
"""All layers of a model; None: there is no graph that serves, and nothing was run."""
_COUNT_S = 1.0
DEFAULT_BACKEND = "inductor"
_SIZES = {
    "token_ids": "tokens",
    "positions": "tokens",
    "rope_lens": "tokens",
    "slot_mapping": "tokens",
    "seq_lens": "requests",
    "block_tables": "requests",
    "query_start": "starts",
    "logits_rows": "sampled",
}
"""A batch's tensors, by what their first dimension counts: equal names are equal numbers."""
_TOLERANCES = {torch.bfloat16: 0.1, torch.float16: 0.05}
_TOLERANCE = 1e-3
"""Norm of the hidden states' difference to those of the model's own calls over their norm: roundings stay far below,
a wrong kernel is far above."""


@dataclass(slots=True, frozen=True)
class Compiled:
    """What became of the wish to compile a model.

    Attributes:
        model: to be run; the given one where it could not be compiled.
        summary: for the log.
    """

    model: Model
    summary: str


class CompiledModel(nn.Module):
    """A Model whose `embed` runs all layers too, compiled: `layers` is empty.

    There is one graph or none: what would need a second one is an error at the start. Later nothing is traced, which a
    watchdog would take for a stop: a step that the graph does not serve, and all after it, run uncompiled.

    Args:
        model: whose layers were built by `calls`.
        calls: what is not traced.
        backend: of torch.compile.

    Raises:
        RuntimeError: torch.compile does not serve this Python, or there is no such backend.
    """

    def __init__(self, model: Model, calls: OpaqueCalls, backend: Backend) -> None:
        super().__init__()
        self.model = cast(nn.Module, model)
        self.layers = nn.ModuleList()
        self._calls = calls
        self._graphs = _OneGraph(backend)
        # torch keeps graphs with a function's code: another engine's are none of this one's
        function = types.FunctionType(_all_layers.__code__.replace(), _all_layers.__globals__)
        self._compiling: Layers = torch.compile(function, fullgraph=True, backend=self._graphs)
        self._compiled: Layers | None = torch._dynamo.run(self._compiling)

    @property
    def num_graphs(self) -> int:
        """How many were compiled: 0 or 1."""
        return self._graphs.count

    def trace(self, batch: ForwardBatch) -> Tensor | None:
        """What `embed` gives, compiled now where it was not; torch's errors. None: torch compiles nothing."""
        if not self.num_graphs:
            for name, size in _SIZES.items():
                mark_unbacked(getattr(batch, name), 0, shape_id=size)
        return self._run(self._compiling, batch)

    def embed(self, batch: ForwardBatch) -> Tensor:
        """The hidden states [T, E] after the last layer; writes the batch's KV.

        Raises:
            CaptureError: called where torch's calls are being recorded.
        """
        if torch._C._len_torch_dispatch_stack():
            raise CaptureError("a compiled model's calls cannot be recorded")
        if self._compiled is not None:
            hidden = self._run(self._compiled, batch)
            if hidden is not None:
                return hidden
            self._compiled = None
            logger.warning(
                "torch.compile: the graph does not serve a step of %d tokens (the model, the step or torch's settings "
                "are not as they were when it was made); from now on steps run uncompiled",
                batch.num_tokens,
            )
        return run_layers(cast(Model, self.model), batch)

    def finish(self, hidden: Tensor) -> Tensor:
        """See Model."""
        return cast(Model, self.model).finish(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """See Model."""
        return cast(Model, self.model).logits(hidden)

    def _run(self, layers: Layers, batch: ForwardBatch) -> Tensor | None:
        self._calls.batch = batch
        return layers(self.model, replace(batch, scratch={}))  # empty, as it was when the graph was made


class _OneGraph:
    """A backend of torch.compile that compiles once. Torch keeps it for good, so it knows of no model."""

    def __init__(self, backend: Backend) -> None:
        self.count = 0
        self._backend = lookup_backend(backend)

    def __call__(self, graph: Any, inputs: Any) -> Any:
        if self.count:
            raise CaptureError("the model's code depends on more of a step than its tensors")
        result = self._backend(graph, inputs)
        self.count += 1
        return result


def compile_model(
    model: Model, calls: OpaqueCalls, steps: Iterable[ForwardBatch], backend: Backend | None = None
) -> Compiled:
    """Compile a model's layers, and compare what they compute with their own calls.

    Args:
        model: loaded, with its KV caches bound.
        calls: its layers were built by them.
        steps: of several sizes, prepared by the attention backend; each is valid until the next one is taken.
        backend: of torch.compile; by default inductor, which needs a C++ compiler on a CPU.
    """
    try:
        return _compile_model(model, calls, steps, backend or DEFAULT_BACKEND)
    finally:
        _end_workers()


def _compile_model(
    model: Model, calls: OpaqueCalls, steps: Iterable[ForwardBatch], backend: Backend
) -> Compiled:
    begin = time.perf_counter()
    try:
        compiled = CompiledModel(model, calls, backend)
    except Exception as error:  # torch's own, before anything ran
        return _not_compiled(model, error)
    for batch in steps:
        expected = run_layers(model, batch).clone()
        try:
            with _counting():
                found = compiled.trace(batch)
            _check(found, expected)
        except Exception as error:  # the same step ran uncompiled: whatever fails here is the compiler's
            return _not_compiled(model, error)
    seconds = time.perf_counter() - begin
    return Compiled(cast(Model, compiled), f"compiled by torch.compile in {seconds:.1f} s, one graph")


@contextmanager
def _counting() -> Iterator[None]:
    """Count as progress that torch compiles: minutes, for large models. How long a start may last is bounded anyway."""
    done = threading.Event()

    def count() -> None:
        while not done.wait(_COUNT_S):
            PROGRESS.count += 1

    thread = threading.Thread(target=count, name="quire-compiling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _end_workers() -> None:
    """End inductor's processes, which would stay as long as this one; it starts others where it needs them again."""
    async_compile = sys.modules.get("torch._inductor.async_compile")
    if async_compile is not None:
        async_compile.shutdown_compile_workers()


def _all_layers(model: Model, batch: ForwardBatch) -> Tensor | None:
    """As `run_layers`, without its count, which is no part of a graph; None where it runs as it is, uncompiled."""
    if not torch.compiler.is_compiling():
        return None
    hidden = model.embed(batch)
    for layer in model.layers:
        hidden = layer(hidden, batch)
    return hidden


def _check(found: Tensor | None, expected: Tensor) -> None:
    if found is None:
        raise CaptureError("it is switched off, or does not serve this Python")
    difference = (found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)
    if not difference <= _TOLERANCES.get(expected.dtype, _TOLERANCE):
        raise CaptureError(
            f"hidden states of a step of {expected.shape[0]} tokens differ by {difference:.2g}"
        )


def _not_compiled(model: Model, error: Exception) -> Compiled:
    return Compiled(model, f"not compiled (torch.compile: {_reason(error)})")


def _reason(error: BaseException) -> str:
    """The first line of what went wrong inside torch's wrappings of it."""
    while isinstance(inner := getattr(error, "inner_exception", None), BaseException):
        error = inner
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return text if isinstance(error, CaptureError) else f"{type(error).__name__}: {text}"
