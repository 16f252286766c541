"""Steps that are run ahead of the host: what they sampled stays on the device until the host comes to read it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from quire.api.step import PlanRow, RowResult, StepPlan, StepResult
from quire.execution.batch_builder import BatchBuilder, BuiltBatch
from quire.execution.logprobs import NOT_FINITE
from quire.execution.philox import Purpose, uniform
from quire.execution.sampler import Draws, Sampler
from quire.execution.sampling_state import SamplingState
from quire.execution.step_buffers import Arrays
from quire.ops.sampling import NO_TOKEN


class LaunchedStep:
    """A step that was given to the device; see PendingStep."""

    def __init__(self, slots: frozenset[int], read: Callable[[], StepResult]) -> None:
        self.sampled_slots = slots
        self._read = read
        self._result: StepResult | None = None

    def result(self) -> StepResult:
        """Wait for the step, and note its tokens, once."""
        if self._result is None:
            self._result = self._read()
        return self._result


class TokensAhead:
    """The last sampled token of every slot, on the device, where the next step's batch takes it from.

    Args:
        builder: of the batches. sampling: what is known of the slots. sampler: samples.
        num_slots: of requests.
    """

    def __init__(
        self, builder: BatchBuilder, sampling: SamplingState, sampler: Sampler, num_slots: int
    ) -> None:
        self._builder = builder
        self._sampling = sampling
        self._sampler = sampler
        device = builder.tensors["token_ids"].device
        self._last_ids = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._num_unread = 0
        self._is_random = False

    def serves(self, rows: list[PlanRow]) -> bool:
        """Whether nothing of the rows' sampling needs the host: no edits of logits, and no logprobs."""
        slots = [row.slot for row in rows if row.is_sampled]
        if any(self._sampling.num_logprobs[slot] is not None for slot in slots):
            return False
        return not self._sampling.needs_edits(np.array(slots, dtype=np.int64)).any()

    def build(self, plan: StepPlan) -> BuiltBatch:
        """The batch of a plan, with the tokens that only the device knows."""
        built = self._builder.build(plan, self._fill)
        if self._num_unread:
            tensors, count = self._builder.tensors, self._num_unread
            ids = self._last_ids.index_select(0, tensors["unread_slots"][:count])
            built.batch.token_ids.index_copy_(0, tensors["unread_rows"][:count], ids)
        return built

    def launch(self, plan: StepPlan, built: BuiltBatch, logits: Tensor | None) -> LaunchedStep:
        """Sample the tokens of a step that `build` built; the host does not wait for them.

        Args:
            plan: of the step.
            built: what was built of it.
            logits: [L, V], one row for each sampled one; None: nothing is sampled.
        """
        slots = [built.rows[index].slot for index in built.sampled_rows]
        transfers = self._builder.transfers
        token_ids = self._last_ids[:0] if logits is None else self._sample(logits, slots)
        if transfers is not None:
            token_ids = transfers.to_host(token_ids)
        mark = None if transfers is None else transfers.mark()

        def read() -> StepResult:
            if transfers is not None:
                transfers.wait(mark)
            return StepResult(plan.step_id, self._note(built, token_ids.tolist()))

        return LaunchedStep(frozenset(slots), read)

    def _fill(self, arrays: Arrays, rows: list[PlanRow]) -> None:
        """Which rows' tokens the host does not know, and what the sampled rows are sampled with."""
        known = self._builder.num_known
        unread = [index for index, row in enumerate(rows) if row.start + row.num_tokens > known(row.slot)]
        self._num_unread = len(
            unread
        )  # all of one token: these come first, so that a row is a place in the batch
        arrays["unread_rows"][: len(unread)] = unread
        arrays["unread_slots"][: len(unread)] = [rows[index].slot for index in unread]
        state = self._sampling
        slots = np.array([row.slot for row in rows if row.is_sampled], dtype=np.int64)
        count = len(slots)
        arrays["sampled_slots"][:count] = slots
        self._is_random = bool((state.temperature[slots] > 0.0).any())
        if self._is_random:
            for name in ("temperature", "min_p", "top_p", "top_k"):
                arrays[name][:count] = getattr(state, name)[slots]
            arrays["draws"][:count] = uniform(
                state.seeds[slots], state.num_output_tokens[slots], Purpose.TOKEN
            )

    def _sample(self, logits: Tensor, slots: list[int]) -> Tensor:
        """The tokens of the sampled rows, which are noted as their slots' last ones."""
        some = {name: tensor[: len(slots)] for name, tensor in self._builder.tensors.items()}
        draws = None
        if self._is_random:
            draws = Draws(some["temperature"], some["min_p"], some["top_p"], some["draws"], some["top_k"])
        token_ids = self._sampler.choose(logits, draws)
        self._last_ids.index_copy_(
            0, some["sampled_slots"], token_ids.clamp_min(0)
        )  # any id, of a failed row
        self._sampling.num_output_tokens[slots] += 1
        return token_ids

    def _note(self, built: BuiltBatch, token_ids: list[int]) -> list[RowResult]:
        """The results in the plan's order; tokens are recorded as known."""
        results = {
            index: RowResult(row.slot, []) for index, row in zip(built.plan_indices, built.rows, strict=True)
        }
        for index, token_id in zip(built.sampled_rows, token_ids, strict=True):
            row = built.rows[index]
            if token_id == NO_TOKEN:
                result = RowResult(row.slot, [], error=NOT_FINITE)
            else:
                self._builder.set_tokens(row.slot, row.start + row.num_tokens, [token_id])
                result = RowResult(row.slot, [token_id])
            results[built.plan_indices[index]] = result
        return [results[index] for index in range(len(results))]
