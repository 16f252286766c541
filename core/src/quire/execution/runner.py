"""The runner: applies a plan, runs the model, samples. Owns weights, KV cache and per-slot state."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from quire.api.errors import PluginError
from quire.api.protocols import AttentionBackend, Model, PendingStep
from quire.api.step import RowResult, SlotAssignment, StepPlan, StepResult
from quire.execution.ahead import LaunchedStep, TokensAhead
from quire.execution.batch_builder import BatchBuilder, BatchLimits, BuiltBatch
from quire.execution.capture import SampleSteps, StepCaptures
from quire.execution.drafting.calibration import (
    CALIBRATION_REPEATS,
    CALIBRATION_S,
    CALIBRATION_STEP_S,
    CalibrationPlans,
)
from quire.execution.drafting.speculator import RunnerParts, Speculator
from quire.execution.executor import CompletedStep
from quire.execution.forward import ModelPass
from quire.execution.host_memory import BackgroundPages
from quire.execution.processors import ProcessorTable
from quire.execution.prompt_logprobs import PromptLogprobs
from quire.execution.sampler import Sampler, SamplingOps
from quire.execution.sampling_state import SamplingState
from quire.execution.step_buffers import Transfers
from quire.execution.verifier import DraftedRow, VerifiedRow, Verifier
from quire.loading.freed_memory import release_freed_memory


@dataclass(slots=True)
class RunnerTimes:
    """Seconds spent so far, by part of a step."""

    build_s: float = 0.0
    forward_s: float = 0.0
    sample_s: float = 0.0


class ModelRunner:
    """Runs plans on one device.

    Args:
        model: built, loaded, with its KV cache bound.
        backend: the attention backend of all its layers.
        kv_caches: one tensor per attention layer, as the backend shapes them.
        limits: sizes of the persistent buffers. vocab_size: the logits' width.
        processors: the logits processors that assignments name; None where there are none.
        make_speculator: called with this runner's parts; None: nothing is drafted.
        sampling_ops: what the sampler calls; None: the references.
        transfers: to the device; None: those of its type.
    """

    def __init__(
        self,
        model: Model,
        backend: AttentionBackend,
        kv_caches: list[Tensor],
        limits: BatchLimits,
        vocab_size: int,
        processors: ProcessorTable | None = None,
        make_speculator: Callable[[RunnerParts], Speculator] | None = None,
        sampling_ops: SamplingOps | None = None,
        transfers: Transfers | None = None,
    ) -> None:
        self._pages: BackgroundPages | None = None
        self._num_kv_slots = 0
        self._model = model
        self._backend = backend
        self._kv_caches = kv_caches
        self._device = kv_caches[0].device
        self._limits = limits
        self._vocab_size = vocab_size
        self._builder = BatchBuilder(limits, self._device, transfers)
        self._sampling = SamplingState(limits.max_num_seqs, vocab_size)
        self._pass = ModelPass(model)
        self._prompt_logprobs = PromptLogprobs(model, self._builder, limits.max_num_seqs)
        sampler = Sampler(sampling_ops)
        self._verifier = Verifier(sampler, self._sampling)
        self._ahead = TokensAhead(self._builder, self._sampling, sampler, limits.max_num_seqs)
        self._launched: LaunchedStep | None = None
        self._processors = processors
        parts = RunnerParts(self._builder, self._sampling, limits)
        self._speculator = None if make_speculator is None else make_speculator(parts)
        self.times = RunnerTimes()

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Run one plan: assignments, block tables, block copies, then forward and sampling."""
        begin = time.perf_counter()
        self._read_launched()
        self._apply(plan)
        return self._run_applied(plan, begin)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingStep:
        """As `run`, without waiting for the step's tokens; the result of an earlier launch may be still unread.

        A step whose sampling needs the host (edits of logits, logprobs, drafts) is run to its end here, behind the
        step before it.
        """
        begin = time.perf_counter()
        taken = {assignment.slot for assignment in plan.assignments}
        if self._launched is not None and taken & self._launched.sampled_slots:
            self._read_launched()  # its tokens belong to the slot's last request
        self._apply(plan)
        needs_host = self._speculator is not None or any(map(self._prompt_logprobs.are_due, plan.rows))
        if needs_host or not self._ahead.serves(plan.rows):
            self._read_launched()
            return CompletedStep(self._run_applied(plan, begin))
        built = self._ahead.build(plan)
        _, logits = self._forward(built, begin)
        forwarded_at = time.perf_counter()
        self._launched = self._ahead.launch(plan, built, logits)
        self.times.sample_s += time.perf_counter() - forwarded_at
        return self._launched

    def _read_launched(self) -> None:
        """Let the host know the tokens of the last launched step."""
        if self._launched is not None:
            self._launched.result()
            self._launched = None

    def _apply(self, plan: StepPlan) -> None:
        """Assignments, block tables and block copies of a plan."""
        if self._speculator is not None:
            self._speculator.release(plan.released_slots)
        for assignment in plan.assignments:
            self._assign(assignment)
            if self._speculator is not None:
                self._speculator.assign(assignment)
        self._builder.apply(plan)
        self._copy_blocks(plan.block_copies)
        if self._speculator is not None:
            self._speculator.apply(plan)

    def _run_applied(self, plan: StepPlan, begin: float) -> StepResult:
        """Forward and sampling of a plan that was applied."""
        if not plan.rows:
            return StepResult(plan.step_id, [])
        results = self._run_rows(plan, begin)
        if self._speculator is not None and any(result.token_ids for result in results):
            results = self._speculator.follow_up(plan, results, time.perf_counter() - begin)
        return StepResult(plan.step_id, results)

    @torch.inference_mode()
    def capture(self, num_blocks: int, captures: StepCaptures) -> str:
        """Let the model's steps be recorded, before the first request.

        Args:
            num_blocks: of the KV cache, whose contents are overwritten.
            captures: who may record them.

        Returns:
            What became of it, for the log.
        """
        samples = SampleSteps(self._builder, self._limits, num_blocks, self._backend, self._vocab_size)
        captured = captures.record(self._model, samples, self._limits)
        self._pass = ModelPass(captured.model or self._model, captured.steps)
        release_freed_memory()
        return captured.summary

    @torch.inference_mode()
    def calibrate(self, num_blocks: int) -> None:
        """Measure steps and proposing, for the control of drafts; before the first request.

        Args:
            num_blocks: of the KV cache, whose contents are overwritten.
        """
        if self._speculator is None:
            return
        plans = CalibrationPlans(self._limits, num_blocks)
        step_times = []
        begin = time.perf_counter()
        for size in plans.sizes:
            step_times.append((size, self._measure(plans.step(size))))
            if time.perf_counter() - begin > CALIBRATION_S:
                break
        plan = plans.prompt()
        self._builder.assign(plan.assignments[0])
        self._builder.apply(plan)
        self._speculator.calibrate(plan.assignments[0], step_times)
        self.times = RunnerTimes()

    def _measure(self, plan: StepPlan) -> float:
        """Seconds of a step like this, the least of a few."""
        for assignment in plan.assignments:
            self._assign(assignment)
        self._builder.apply(plan)
        seconds: list[float] = []
        while len(seconds) < CALIBRATION_REPEATS and (len(seconds) < 2 or sum(seconds) < CALIBRATION_STEP_S):
            begin = time.perf_counter()
            self._run_rows(plan, begin)
            seconds.append(time.perf_counter() - begin)
        return min(seconds)

    def _run_rows(self, plan: StepPlan, begin: float) -> list[RowResult]:
        """Batch, forward and sampling; the results in the plan's order."""
        built = self._builder.build(plan)
        if self._speculator is not None:
            self._speculator.note_target(built)
        hidden, logits = self._forward(built, begin)
        forwarded_at = time.perf_counter()
        verified = self._verify(built, logits) if logits is not None else {}
        results = self._results(built, hidden, verified)
        self.times.sample_s += time.perf_counter() - forwarded_at
        return results

    def _forward(self, built: BuiltBatch, begin: float) -> tuple[Tensor, Tensor | None]:
        """The hidden states of a batch, and the logits of its sampled rows; None where there are none."""
        built.batch.attention = self._backend.prepare(built.batch)
        built_at = time.perf_counter()
        if self._pages is not None:
            self._pages.bring(int(built.slot_mapping.max()) + 1, self._num_kv_slots)
        hidden = self._pass.layers(built.batch)
        logits = self._pass.logits(hidden, built.batch) if built.sampled_rows else None
        self.times.build_s += built_at - begin
        self.times.forward_s += time.perf_counter() - built_at
        return hidden, logits

    def prefault(self, num_kv_blocks: int) -> None:
        """Bring the memory of the KV caches, on a CPU, in the background from now on, and ahead of steps."""
        self._num_kv_slots = num_kv_blocks * self._limits.block_size
        self._pages = BackgroundPages(self._kv_caches)

    def close(self) -> None:
        """Free weights and caches."""
        if self._pages is not None:
            self._pages.stop()
        if self._speculator is not None:
            self._speculator.close()
        self._kv_caches.clear()
        del self._model, self._pass, self._prompt_logprobs

    def _assign(self, assignment: SlotAssignment) -> None:
        self._builder.assign(assignment)
        processors = None
        if assignment.logits_processors:
            if self._processors is None:
                raise PluginError(f"this runner has no logits processors: {assignment.logits_processors}")
            processors = self._processors.bind(assignment)
        self._sampling.assign(assignment.slot, assignment, processors)
        self._prompt_logprobs.assign(assignment)

    def _copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        if not pairs:
            return
        ids = torch.tensor(pairs, dtype=torch.int64, device=self._device)
        self._backend.copy_blocks(self._kv_caches, ids[:, 0], ids[:, 1])

    def _results(
        self, built: BuiltBatch, hidden: Tensor, verified: dict[int, VerifiedRow]
    ) -> list[RowResult]:
        """The results in the plan's order."""
        results: list[RowResult | None] = [None] * len(built.rows)
        start = 0
        for index, row in enumerate(built.rows):
            found = verified.get(index) or VerifiedRow()
            result = RowResult(
                row.slot,
                found.token_ids,
                found.logprobs,
                error=found.error,
                failed_plugin=found.failed_plugin,
            )
            if self._prompt_logprobs.are_due(row) and result.error is None:
                result = self._prompt_logprobs.add(result, row, hidden[start : start + row.num_tokens])
            results[built.plan_indices[index]] = result
            start += row.num_tokens
        return cast(list[RowResult], results)

    def _verify(self, built: BuiltBatch, logits: Tensor) -> dict[int, VerifiedRow]:
        """The tokens of the sampled rows, by their indices; recorded as the next step's inputs."""
        rows = [built.rows[index] for index in built.sampled_rows]
        drafted = [
            DraftedRow(row.slot, self._speculator.draft_ids(row))
            if self._speculator is not None and row.num_drafts
            else DraftedRow(row.slot)
            for row in rows
        ]
        verified = self._verifier.verify(logits, drafted)
        for row, found in zip(rows, verified, strict=True):
            self._builder.set_tokens(row.slot, row.start + row.num_tokens - row.num_drafts, found.token_ids)
        return dict(zip(built.sampled_rows, verified, strict=True))
