"""The step capture of native kernels; see `quire.api.protocols.StepCapture`."""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

import torch
from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.errors import CaptureError
from quire.api.protocols import CaptureRequest
from quire_kernels.native.kernel import SharedArguments
from quire_kernels.replay.program import Program
from quire_kernels.replay.recorder import Recorder

_NUM_ROWS = 13
"""Tokens of a recorded step: no size of a model is likely to be a multiple of it by accident."""
_MANY_TOKENS = 64
"""From so many on, a replayed step pauses after each layer, to show that it goes on."""


class NativeCapture:
    """Records a model's native calls once, for steps of every size, and replays them in one parallel region."""

    def capture(self, request: CaptureRequest) -> NativeSteps:
        """See StepCapture.

        Raises:
            CaptureError: the model does something that has no kernel here.
        """
        if request.max_tokens < _NUM_ROWS or request.max_context < _NUM_ROWS:
            raise CaptureError(f"steps and contexts are of less than {_NUM_ROWS} tokens")
        with torch.inference_mode():
            _run_once(request)
            try:
                layers, addresses = _record_layers(request)
                head, logits_rows = _record_head(request)
            except CaptureError:
                raise
            except Exception as error:  # the plain run had none
                raise CaptureError(f"recorded, the model raised {type(error).__name__}: {error}") from error
        return NativeSteps(request, layers, head, (*addresses, logits_rows))


class NativeSteps:
    """Recorded calls of a model's layers and head; see CapturedSteps.

    Every step of the model's batch buffers is replayed, whatever its size.
    """

    def __init__(
        self, request: CaptureRequest, layers: Program, head: Program, addresses: tuple[int, ...]
    ) -> None:
        self._layers, self._head = layers, head
        self._progress = request.progress
        self._addresses, self._logits_rows = addresses[:-1], addresses[-1]

    def layers(self, batch: ForwardBatch) -> Tensor | None:
        """See CapturedSteps."""
        step = batch.attention
        if not isinstance(step, SharedArguments):
            return None
        if _addresses(batch) != self._addresses:
            raise CaptureError("the batch does not lie in the buffers that the steps were recorded with")
        num_tokens = batch.num_tokens
        pause = self._progress if num_tokens >= _MANY_TOKENS else None
        hidden = self._layers.run(num_tokens, step.arguments, after_layer=pause)
        self._progress()
        return hidden

    def logits(self, hidden: Tensor, batch: ForwardBatch) -> Tensor | None:
        """See CapturedSteps."""
        num_rows = len(batch.logits_rows)
        if num_rows > self._head.max_tokens or not hidden.is_contiguous():
            return None
        if batch.logits_rows.data_ptr() != self._logits_rows:
            raise CaptureError("the batch does not lie in the buffers that the steps were recorded with")
        return self._head.run(num_rows, given=hidden)

    def trim(self) -> None:
        """See CapturedSteps."""
        self._layers.trim()
        self._head.trim()

    def describe(self) -> str:
        """See CapturedSteps."""
        programs = (self._layers, self._head)
        size = sum(each.bytes_per_token * each.max_tokens for each in programs) / 1e6
        calls = f"{self._layers.num_calls} calls of layers, {self._head.num_calls} of the head"
        return f"{calls}; the largest steps take {size:.0f} MB"


class _NotRead(list[int]):
    """Host values of a batch, which differ from step to step: a model that reads them cannot be recorded."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise CaptureError("reading a batch's query_lens, context_lens or num_requests cannot be recorded")

    __getitem__ = __iter__ = __reversed__ = __len__ = __bool__ = __contains__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __mul__ = __rmul__ = __array__ = copy = count = index = _refuse


def _run_once(request: CaptureRequest) -> None:
    """A plain step: what the model keeps from its first one, it does not make while it is recorded."""
    model = request.model
    batch = request.sample([(_NUM_ROWS, _NUM_ROWS)])
    hidden = model.embed(batch)
    for layer in model.layers:
        hidden = layer(hidden, batch)
        request.progress()
    model.logits(model.finish(hidden[batch.logits_rows]))


def _record_layers(request: CaptureRequest) -> tuple[Program, tuple[int, ...]]:
    model = request.model
    batch = request.sample([(_NUM_ROWS, _NUM_ROWS)])
    step = batch.attention
    if not isinstance(step, SharedArguments):
        raise CaptureError("the attention backend is not native-paged")
    recorder = Recorder(_NUM_ROWS, step)
    marks = []
    with recorder:
        seen = replace(batch, query_lens=_NotRead(), context_lens=_NotRead(), scratch={})
        hidden = model.embed(seen)
        for layer in model.layers:
            marks.append(len(recorder.calls))
            hidden = layer(hidden, seen)
            request.progress()
    return Program(recorder, hidden, marks, request.max_tokens), _addresses(batch)


def _record_head(request: CaptureRequest) -> tuple[Program, int]:
    """The head's calls, and where they read what rows they are for."""
    model = request.model
    num_rows = min(_NUM_ROWS, request.max_rows)
    batch = request.sample([(_NUM_ROWS, _NUM_ROWS)])
    if batch.logits_rows.untyped_storage().nbytes() < num_rows * batch.logits_rows.itemsize:
        raise CaptureError("logits_rows has no room for more rows")
    rows = batch.logits_rows.as_strided((num_rows,), (1,))
    rows.copy_(torch.arange(num_rows))
    hidden = model.embed(batch).clone()
    recorder = Recorder(num_rows, given=hidden)
    with recorder:
        logits = model.logits(model.finish(hidden[rows]))
    return Program(recorder, logits, (), request.max_rows), rows.data_ptr()


def _addresses(batch: ForwardBatch) -> tuple[int, ...]:
    tensors = (batch.token_ids, batch.positions, batch.rope_lens, batch.slot_mapping)
    return tuple(tensor.data_ptr() for tensor in tensors)
