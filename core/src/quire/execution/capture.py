"""Recording a model's steps: who does it, and whether what is replayed is what the model computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from quire.api.batch import DeviceInfo, DTypeName, ForwardBatch
from quire.api.errors import CaptureError, PluginError, QuireError
from quire.api.protocols import AttentionBackend, CapturedSteps, CaptureRequest, Model, StepCapture
from quire.api.request import SamplingParams
from quire.api.specs import Registration, StepCaptureSpec
from quire.api.step import BlockTableUpdate, PlanRow, SlotAssignment, StepPlan
from quire.execution.batch_builder import BatchBuilder, BatchLimits
from quire.execution.forward import run_head, run_layers
from quire.execution.opaque import OpaqueCalls
from quire.execution.progress import PROGRESS
from quire.ops.support import origin, refusal_of
from quire.ops.table import Resolve

Rows = Sequence[tuple[int, int]]
"""For each row of a step its tokens, and the length of its context with them."""

_DECODES = ((1, 5), (1, 40), (1, 17), (1, 2), (1, 64))
_CHECKED: tuple[Rows, ...] = (
    ((1, 33),),
    _DECODES,
    ((1, 20), (1, 1), (70, 100), (9, 9)),
    (*[(1, 10 + 3 * index) for index in range(40)],),
    ((1, 200), (140, 160)),
    ((21, 21),),
)
"""Steps that are compared: one request, a few, prompts beside them, many, long ones, a prompt alone."""


@dataclass(slots=True, frozen=True)
class Captured:
    """What became of the wish to record a model's steps.

    Attributes:
        steps: to be replayed; None: steps are run call by call.
        summary: for the log.
        model: what is run instead of the given one; None: that one.
    """

    steps: CapturedSteps | None
    summary: str
    model: Model | None = None


class SampleSteps:
    """Steps that nobody asked for, in the buffers of every later one; see CaptureRequest.

    Args:
        builder: of the batches. limits: its own. num_blocks: of the KV cache. backend: prepares the batches.
        vocab_size: token ids are below it.
    """

    def __init__(
        self,
        builder: BatchBuilder,
        limits: BatchLimits,
        num_blocks: int,
        backend: AttentionBackend,
        vocab_size: int,
    ) -> None:
        self._builder = builder
        self._limits = limits
        self._num_blocks = num_blocks
        self._backend = backend
        self._vocab_size = vocab_size
        self._random = torch.Generator().manual_seed(0)

    def __call__(self, rows: Rows) -> ForwardBatch:
        """The batch of a step of random tokens."""
        first = 0
        plan_rows = []
        for slot, (num_tokens, context) in enumerate(rows):
            count = -(-context // self._limits.block_size)
            self._builder.assign(self._assignment(slot, context))
            blocks = [block % self._num_blocks for block in range(first, first + count)]
            self._builder.apply(StepPlan(0, [], [BlockTableUpdate(slot, 0, blocks)], [], []))
            plan_rows.append(PlanRow(slot, context - num_tokens, num_tokens, is_sampled=True))
            first += count
        batch = self._builder.build(StepPlan(0, [], [], [], plan_rows)).batch
        batch.attention = self._backend.prepare(batch)
        return batch

    @property
    def max_context(self) -> int:
        """Most tokens of a row's context."""
        return min(self._limits.max_model_len, self._num_blocks * self._limits.block_size)

    def fits(self, rows: Rows) -> bool:
        """Whether a step can be: no more tokens, requests and blocks than there may be."""
        limits = self._limits
        blocks = sum(-(-context // limits.block_size) for _, context in rows)
        return (
            len(rows) <= limits.max_num_seqs
            and sum(num_tokens for num_tokens, _ in rows) <= limits.max_num_batched_tokens
            and max(context for _, context in rows) <= limits.max_model_len
            and blocks <= self._num_blocks
        )

    def cut(self, num_tokens: int, context: int) -> tuple[int, int]:
        """A row of no more tokens, and no longer context, than a step of one row may have."""
        context = min(context, self.max_context)
        return min(num_tokens, context, self._limits.max_num_batched_tokens), context

    def _assignment(self, slot: int, context: int) -> SlotAssignment:
        token_ids = torch.randint(self._vocab_size, (context,), generator=self._random).tolist()
        params = SamplingParams(temperature=0.0, max_tokens=None)
        return SlotAssignment(slot, f"sample-{slot}", token_ids, context, params, 0, frozenset())


@dataclass(slots=True, frozen=True)
class StepCaptures:
    """The step captures that there are.

    Attributes:
        registrations: of StepCaptureSpecs. resolve: imports what a spec names.
        device, dtype: of the model.
        opaque: what its layers were built by, where it is to be compiled first; else None.
    """

    registrations: Sequence[Registration]
    resolve: Resolve
    device: DeviceInfo
    dtype: DTypeName
    opaque: OpaqueCalls | None = None

    def record(self, model: Model, samples: SampleSteps, limits: BatchLimits) -> Captured:
        """Compile a model where that is wished; let the best one that serves here record its steps, and compare.

        Args:
            model: loaded, with its KV caches bound; the caches' contents are overwritten.
            samples: makes steps.
            limits: of steps.

        Raises:
            PluginError: a step capture cannot be made, or failed by anything but a CaptureError.
        """
        if self.opaque is None:
            return self._record(model, samples, limits)
        from quire.execution.compiled import compile_model  # imports torch's compiler, which takes its time

        steps = (samples(rows) for rows in reversed(list(_fitting(samples))))
        compiled = compile_model(model, self.opaque, steps)
        captured = self._record(compiled.model, samples, limits)
        return replace(captured, summary=f"{compiled.summary}; {captured.summary}", model=compiled.model)

    def _record(self, model: Model, samples: SampleSteps, limits: BatchLimits) -> Captured:
        ranked = sorted(self.registrations, key=lambda entry: (-_spec(entry).priority, _spec(entry).name))
        refusals = [(entry, refusal_of(entry, self.device, self.dtype)) for entry in ranked]
        chosen = next((entry for entry, refusal in refusals if refusal is None), None)
        if chosen is None:
            reasons = "; ".join(f"{_spec(entry).name}: {refusal}" for entry, refusal in refusals)
            return Captured(None, f"call by call ({reasons or 'no step capture is installed'})")
        name, capture = _spec(chosen).name, self._make(chosen)
        request = CaptureRequest(
            model=model,
            sample=samples,
            max_num_seqs=limits.max_num_seqs,
            max_tokens=limits.max_num_batched_tokens,
            max_rows=limits.max_rows,
            max_context=samples.max_context,
            progress=_progress,
        )
        try:
            _refuse_hooks(cast(nn.Module, model))
            steps = capture.capture(request)
            _compare(model, steps, samples)
            steps.trim()
        except CaptureError as error:
            return Captured(None, f"call by call ({name}: {error})")
        except QuireError:
            raise
        except Exception as error:
            raise PluginError(
                f"the step capture {name!r} of {origin(chosen)} raised {type(error).__name__}: {error}"
            ) from error
        return Captured(steps, f"replayed by {name}: {steps.describe()}")

    def _make(self, entry: Registration) -> StepCapture:
        who = f"the step capture {_spec(entry).name!r} of {origin(entry)}"
        factory = self.resolve(_spec(entry).factory, entry)
        try:
            capture = factory() if callable(factory) else None
        except Exception as error:
            raise PluginError(f"{who}: its factory raised {type(error).__name__}: {error}") from error
        if not isinstance(capture, StepCapture):
            raise PluginError(f"{who}: its factory gave {capture!r}, expected a StepCapture")
        return capture


def _progress() -> None:
    PROGRESS.count += 1


def _spec(entry: Registration) -> StepCaptureSpec:
    return cast(StepCaptureSpec, entry.spec)


def _refuse_hooks(model: nn.Module) -> None:
    """A module's hooks, and what was put over its forward, are Python code, which a replayed step does not run."""
    anywhere = torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
    for name, module in model.named_modules():
        if anywhere or module._forward_hooks or module._forward_pre_hooks:
            raise CaptureError(
                f"{name or 'the model'} has forward hooks, which a replayed step would not call"
            )
        if "forward" in vars(module):
            raise CaptureError(
                f"{name or 'the model'} has a forward put over its class's, which a replayed step would not call"
            )


def _compare(model: Model, steps: CapturedSteps, samples: SampleSteps) -> None:
    """CaptureError where a replayed step gives anything but the bits of a plain one."""
    for rows in _fitting(samples):
        batch = samples(rows)
        hidden = steps.layers(batch)
        if hidden is not None:
            hidden = hidden.clone()
            _check("hidden states", rows, hidden, run_layers(model, batch))
        else:
            hidden = run_layers(model, batch).clone()
        logits = steps.logits(hidden, batch)
        if logits is not None:
            _check("logits", rows, logits, run_head(model, hidden, batch))


def _fitting(samples: SampleSteps) -> Iterator[Rows]:
    """The steps to compare, without the rows that do not fit here; the first one is cut where it must be."""
    for rows in _CHECKED:
        rows = (samples.cut(*rows[0]), *rows[1:])
        while not samples.fits(rows):
            rows = rows[:-1]
        yield rows


def _check(what: str, rows: Rows, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape or not torch.equal(_bits(found), _bits(expected)):
        raise CaptureError(f"{what} of a replayed step of {len(rows)} rows differ from the model's own")


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)
