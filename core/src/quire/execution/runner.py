"""The runner: applies a plan, runs the model, samples. Owns weights, KV cache and per-slot state."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.errors import NumericalError, PluginError
from quire.api.protocols import AttentionBackend, Model
from quire.api.step import PlanRow, RowResult, SlotAssignment, StepPlan, StepResult, TokenLogprobs
from quire.execution.batch_builder import BatchBuilder, BatchLimits, BuiltBatch
from quire.execution.logprobs import prompt_logprobs
from quire.execution.processors import ProcessorTable
from quire.execution.sampler import Sampler
from quire.execution.sampling_state import SamplingState


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
    """

    def __init__(
        self,
        model: Model,
        backend: AttentionBackend,
        kv_caches: list[Tensor],
        limits: BatchLimits,
        vocab_size: int,
        processors: ProcessorTable | None = None,
    ) -> None:
        self._model = model
        self._backend = backend
        self._kv_caches = kv_caches
        self._device = kv_caches[0].device
        self._builder = BatchBuilder(limits, self._device)
        self._sampling = SamplingState(limits.max_num_seqs, vocab_size)
        self._num_prompt_logprobs: list[int | None] = [None] * limits.max_num_seqs
        self._sampler = Sampler()
        self._processors = processors
        self.times = RunnerTimes()

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Run one plan: assignments, block tables, block copies, then forward and sampling."""
        begin = time.perf_counter()
        for assignment in plan.assignments:
            self._assign(assignment)
        self._builder.apply(plan)
        self._copy_blocks(plan.block_copies)
        if not plan.rows:
            return StepResult(plan.step_id, [])
        built = self._builder.build(plan)
        built.batch.attention = self._backend.prepare(built.batch)
        built_at = time.perf_counter()
        hidden = self._forward(built.batch)
        logits = None
        if built.sampled_rows:
            logits = self._model.logits(self._model.finish(hidden[built.batch.logits_rows]))
        forwarded_at = time.perf_counter()
        results = self._results(built, hidden, logits)
        self.times.build_s += built_at - begin
        self.times.forward_s += forwarded_at - built_at
        self.times.sample_s += time.perf_counter() - forwarded_at
        return StepResult(plan.step_id, results)

    def close(self) -> None:
        """Free weights and caches."""
        self._kv_caches.clear()
        del self._model

    def _assign(self, assignment: SlotAssignment) -> None:
        self._builder.assign(assignment)
        processors = None
        if assignment.logits_processors:
            if self._processors is None:
                raise PluginError(f"this runner has no logits processors: {assignment.logits_processors}")
            processors = self._processors.bind(assignment)
        self._sampling.assign(assignment.slot, assignment, processors)
        self._num_prompt_logprobs[assignment.slot] = assignment.params.prompt_logprobs

    def _copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        if not pairs:
            return
        ids = torch.tensor(pairs, dtype=torch.int64, device=self._device)
        self._backend.copy_blocks(self._kv_caches, ids[:, 0], ids[:, 1])

    def _forward(self, batch: ForwardBatch) -> Tensor:
        hidden = self._model.embed(batch)
        for layer in self._model.layers:
            hidden = layer(hidden, batch)
        return hidden

    def _results(self, built: BuiltBatch, hidden: Tensor, logits: Tensor | None) -> list[RowResult]:
        results: list[RowResult | None] = [None] * len(built.rows)
        sampled = self._sample(built, logits) if logits is not None else {}
        start = 0
        for index, row in enumerate(built.rows):
            result = sampled.get(index) or RowResult(row.slot, [])
            if self._num_prompt_logprobs[row.slot] is not None and result.error is None:
                result = self._with_prompt_logprobs(result, row, hidden[start : start + row.num_tokens])
            results[built.plan_indices[index]] = result
            start += row.num_tokens
        return cast(list[RowResult], results)

    def _sample(self, built: BuiltBatch, logits: Tensor) -> dict[int, RowResult]:
        slots = [built.rows[index].slot for index in built.sampled_rows]
        sampled = self._sampler.sample(logits, slots, self._sampling)
        results: dict[int, RowResult] = {}
        for position, (index, token_id, entry, error) in enumerate(
            zip(built.sampled_rows, sampled.token_ids, sampled.logprobs, sampled.errors, strict=True)
        ):
            row = built.rows[index]
            if token_id is None:
                plugin = sampled.failed_plugins.get(position)
                results[index] = RowResult(row.slot, [], error=error, failed_plugin=plugin)
                continue
            self._sampling.append(row.slot, token_id)
            self._builder.set_token(row.slot, row.start + row.num_tokens, token_id)
            results[index] = RowResult(row.slot, [token_id], [entry] if entry is not None else None)
        return results

    def _with_prompt_logprobs(self, result: RowResult, row: PlanRow, hidden: Tensor) -> RowResult:
        """Log-probabilities of the prompt tokens that follow this row's tokens."""
        stop = min(row.start + row.num_tokens + 1, self._builder.num_prompt_tokens(row.slot))
        next_ids = self._builder.token_range(row.slot, row.start + 1, stop)
        num_top = self._num_prompt_logprobs[row.slot] or 0

        def compute_logits(first: int, last: int) -> Tensor:
            return self._model.logits(self._model.finish(hidden[first:last]))

        try:
            entries: list[TokenLogprobs] = list(prompt_logprobs(compute_logits, next_ids, num_top))
        except NumericalError as error:
            return RowResult(row.slot, [], error=str(error))
        return RowResult(row.slot, result.token_ids, result.logprobs, entries, result.error)
