"""A second model over the requests' own KV blocks, which drafts for the first one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from quire.api.errors import ConfigError
from quire.api.protocols import AttentionBackend
from quire.api.speculation import DraftModel, DraftRequest
from quire.api.step import PlanRow, StepPlan
from quire.execution.batch_builder import BatchBuilder, BatchLimits, BuiltBatch
from quire.execution.drafting.draft_sampler import DraftSampler, SlotOf
from quire.execution.drafting.draft_slots import DraftSlots
from quire.execution.forward import run_layers
from quire.execution.model_builder import BuiltModel
from quire.execution.progress import PROGRESS


@dataclass(slots=True, frozen=True)
class DraftRuntime:
    """What a running engine shares with its draft models.

    Attributes:
        builder: holds the slots' tokens and block tables; no batch of it is in use during a proposal.
        limits: of the runner. num_blocks: of the KV pool.
        vocab_size: the target's.
    """

    builder: BatchBuilder
    limits: BatchLimits
    num_blocks: int
    vocab_size: int
    slot_of: SlotOf


class PagedDraftModel(DraftModel):
    """Runs a draft model. Its KV of a token lies in a slot of the same number as the target's.

    So block tables, prefix hits, forks and block copies are the target's. KV that is missing, since the request
    is new here or was not drafted for in a while, is computed at the next proposal. KV in shared blocks depends
    on nothing but the tokens before it, so that it does not matter for which request it is computed.

    Args:
        name: as it was asked for.
        built: loaded, without KV caches.
        backend: of the model's attention layers.
        sampler: of the drafts.
        max_len: positions from here on are not computed: there is no draft after so many tokens.
    """

    def __init__(
        self, name: str, built: BuiltModel, backend: AttentionBackend, sampler: DraftSampler, max_len: int
    ) -> None:
        self.name = name
        self.max_len = max_len
        self._built = built
        self._backend = backend
        self._sampler = sampler
        self._kv_caches: list[Tensor] = []
        self._runtime: DraftRuntime | None = None
        self._slots = DraftSlots(0, 1)

    def kv_bytes_per_block(self, block_size: int) -> int:
        """Bytes that one block takes over all layers."""
        return self._built.kv_bytes_per_block(block_size)

    def bind(self, runtime: DraftRuntime) -> None:
        """Allocate the KV caches; before the first proposal."""
        num_blocks, block_size = runtime.num_blocks, runtime.limits.block_size
        self._kv_caches = self._built.allocate_kv_caches(num_blocks, block_size)
        self._slots = DraftSlots(num_blocks, block_size)
        self._runtime = runtime

    def next_tokens(
        self, requests: Sequence[DraftRequest], drafts: Sequence[Sequence[int]]
    ) -> list[int | None]:
        """See DraftModel; where the budget is short it goes to the first requests.

        Raises:
            ConfigError: the engine does not run yet.
            ValueError: a request has as many drafts as it can use, or drafts that are no token ids.
            NumericalError: a request's logits are not finite.
        """
        runtime = self._running()
        tokens: list[int | None] = [None] * len(requests)
        budget = runtime.limits.max_num_batched_tokens
        rows: list[PlanRow] = []
        indices: list[int] = []  # of each row's request
        for index, (request, draft_ids) in enumerate(zip(requests, drafts, strict=True)):
            row = self._row(runtime, request, draft_ids, budget)
            if row is not None:
                budget -= row.num_tokens
                rows.append(row)
                indices.append(index)
        if not rows:
            return tokens
        built = runtime.builder.build(StepPlan(0, [], [], [], rows))
        logits = self._compute(built)
        sampled = [indices[built.plan_indices[index]] for index in built.sampled_rows]
        for index in sampled:
            request, draft_ids = requests[index], drafts[index]
            self._slots.note_proposed(runtime.slot_of(request), len(request.token_ids), draft_ids)
        if logits is not None:
            asked = [requests[index] for index in sampled]
            chosen = self._sampler.sample(asked, [drafts[index] for index in sampled], logits)
            for index, token_id in zip(sampled, chosen, strict=True):
                tokens[index] = token_id
        return tokens

    def apply(self, plan: StepPlan) -> None:
        """Bring the caches up to date with a plan, as the target's are."""
        self._slots.note_tables(plan.table_updates)
        if plan.block_copies:
            self._slots.copy_blocks(plan.block_copies)
            ids = torch.tensor(plan.block_copies, dtype=torch.int64, device=self._built.device)
            self._backend.copy_blocks(self._kv_caches, ids[:, 0], ids[:, 1])

    def note_target(self, built: BuiltBatch, row_drafts: Sequence[Sequence[int]]) -> None:
        """The target computes this batch; for each of its rows the drafts that it verifies."""
        self._slots.note_target(built.slot_mapping, built.rows, row_drafts)

    def describe(self, block_size: int) -> str:
        """One line for the log."""
        module = cast(nn.Module, self._built.model)
        size = sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])
        return (
            f"{self.name}: {type(module).__name__}, {size / 1e6:.1f} MB, KV of "
            f"{self.kv_bytes_per_block(block_size)} bytes per block, contexts of up to {self.max_len} tokens"
        )

    def close(self) -> None:
        """Free the caches."""
        self._kv_caches.clear()
        self._runtime = None

    def _running(self) -> DraftRuntime:
        if self._runtime is None:
            raise ConfigError(
                f"draft model {self.name!r} has no KV cache while no engine runs: call next_tokens() within propose()"
            )
        return self._runtime

    def _row(
        self, runtime: DraftRuntime, request: DraftRequest, draft_ids: Sequence[int], budget: int
    ) -> PlanRow | None:
        """What to compute of a request now; None where that is nothing."""
        num_tokens = len(request.token_ids)
        end = num_tokens + len(draft_ids)
        if len(draft_ids) >= request.max_drafts:
            raise ValueError(
                f"request {request.request_id!r} has {len(draft_ids)} drafts and can use {request.max_drafts}: "
                "ask for no more"
            )
        if draft_ids and not 0 <= min(draft_ids) <= max(draft_ids) < runtime.vocab_size:
            raise ValueError(
                f"request {request.request_id!r} has drafts {list(draft_ids)}, token ids are from 0 to "
                f"{runtime.vocab_size - 1} here"
            )
        if end > self.max_len or budget == 0:
            return None
        slot, builder = runtime.slot_of(request), runtime.builder
        builder.set_drafts(slot, list(draft_ids))
        num_computed = self._slots.num_computed(slot, num_tokens, draft_ids)
        if num_computed is None:
            known = builder.block_ids(slot, num_tokens - 1)
            start = self._slots.first_missing(known, num_tokens - 1)
        else:
            start = min(num_computed, end - 1)
        stop = min(end, start + budget)
        is_narrow = self._built.vocab_size < runtime.vocab_size
        if is_narrow and max(builder.token_range(slot, start, stop)) >= self._built.vocab_size:
            return None  # a token that this model does not have
        return PlanRow(slot, start, stop - start, is_sampled=stop == end)

    def _compute(self, built: BuiltBatch) -> Tensor | None:
        """Write the KV of a batch; the logits of its sampled rows, None where there is none."""
        model, batch = self._built.model, built.batch
        batch.attention = self._backend.prepare(batch)
        hidden = run_layers(model, batch)
        self._slots.note_computed(built.slot_mapping)
        if not built.sampled_rows:
            return None
        logits = model.logits(model.finish(hidden[batch.logits_rows]))
        PROGRESS.count += 1
        return logits
