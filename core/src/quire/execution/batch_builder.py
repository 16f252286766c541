"""From a plan to the flat batch: persistent buffers, filled with a few vectorised copies a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from quire.api.batch import ForwardBatch
from quire.api.step import PlanRow, SlotAssignment, StepPlan

IntArray = NDArray[np.int64]


@dataclass(slots=True, frozen=True)
class BatchLimits:
    """Sizes of the persistent buffers."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int


@dataclass(slots=True, frozen=True)
class BuiltBatch:
    """A batch, and how its rows relate to the plan's.

    Attributes:
        rows: the plan's rows in the batch's order.
        plan_indices: for each batch row its index in the plan.
        sampled_rows: batch rows of which a token is sampled, in the order of `batch.logits_rows`.
    """

    batch: ForwardBatch
    rows: list[PlanRow]
    plan_indices: list[int]
    sampled_rows: list[int]


class _Buffer:
    """A host array and its tensor on the device; on a CPU they are the same memory."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._host = torch.zeros(shape, dtype=dtype, pin_memory=pinned)
        self._device = self._host.to(device) if pinned else self._host
        self.array = self._host.numpy()

    def view(self, *index: slice) -> torch.Tensor:
        """The device's view of `index`, after copying it there."""
        if self._device is not self._host:
            self._device[index].copy_(self._host[index], non_blocking=True)
        return self._device[index]


class BatchBuilder:
    """Keeps the token ids and the block table of every slot, and builds each step's batch."""

    def __init__(self, limits: BatchLimits, device: torch.device) -> None:
        self._block_size = limits.block_size
        self._max_blocks = -(-limits.max_model_len // limits.block_size)
        self._token_ids = np.zeros((limits.max_num_seqs, limits.max_model_len + 1), dtype=np.int32)
        self._tables = np.zeros((limits.max_num_seqs, self._max_blocks), dtype=np.int32)
        self._num_prompt_tokens = np.zeros(limits.max_num_seqs, dtype=np.int64)
        tokens, requests = limits.max_num_batched_tokens, limits.max_num_seqs
        long, short = torch.int64, torch.int32
        self._flat_ids = _Buffer((tokens,), long, device)
        self._positions = _Buffer((tokens,), long, device)
        self._rope_lens = _Buffer((tokens,), long, device)
        self._slot_mapping = _Buffer((tokens,), long, device)
        self._query_start = _Buffer((requests + 1,), short, device)
        self._seq_lens = _Buffer((requests,), short, device)
        self._logits_rows = _Buffer((requests,), long, device)
        self._copied = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]  # torch has no types for it
        self._block_tables = _Buffer((requests, self._max_blocks), short, device)

    def assign(self, assignment: SlotAssignment) -> None:
        """A request takes a slot."""
        token_ids = assignment.token_ids
        self._token_ids[assignment.slot, : len(token_ids)] = token_ids
        self._num_prompt_tokens[assignment.slot] = assignment.num_prompt_tokens

    def apply(self, plan: StepPlan) -> None:
        """Bring the block tables up to date with a plan."""
        for update in plan.table_updates:
            end = update.first_index + len(update.block_ids)
            self._tables[update.slot, update.first_index : end] = update.block_ids

    def set_token(self, slot: int, position: int, token_id: int) -> None:
        """Record a sampled token, the next step's input."""
        self._token_ids[slot, position] = token_id

    def token_range(self, slot: int, start: int, stop: int) -> list[int]:
        """Known token ids of a slot."""
        ids: list[int] = self._token_ids[slot, start:stop].tolist()
        return ids

    def num_prompt_tokens(self, slot: int) -> int:
        """Prompt length of the request in a slot."""
        return int(self._num_prompt_tokens[slot])

    def build(self, plan: StepPlan) -> BuiltBatch:
        """The batch of a plan, rows of one token first. Valid until the next call."""
        if self._copied is not None:
            self._copied.synchronize()  # the last step's copies still read the host arrays
        order = sorted(range(len(plan.rows)), key=lambda index: plan.rows[index].num_tokens != 1)
        rows = [plan.rows[index] for index in order]
        num_rows = len(rows)
        slots = np.fromiter((row.slot for row in rows), np.int64, num_rows)
        starts = np.fromiter((row.start for row in rows), np.int64, num_rows)
        lengths = np.fromiter((row.num_tokens for row in rows), np.int64, num_rows)
        ends = np.cumsum(lengths)
        contexts = starts + lengths
        self._fill_tokens(slots, starts, lengths, ends)
        num_tokens = int(ends[-1])
        sampled = [index for index, row in enumerate(rows) if row.is_sampled]
        self._query_start.array[1 : num_rows + 1] = ends
        self._seq_lens.array[:num_rows] = contexts
        self._logits_rows.array[: len(sampled)] = ends[sampled] - 1
        width = -(-int(contexts.max()) // self._block_size)
        self._block_tables.array[:num_rows, :width] = self._tables[slots, :width]
        flat, some = slice(0, num_tokens), slice(0, num_rows)
        batch = ForwardBatch(
            token_ids=self._flat_ids.view(flat),
            positions=self._positions.view(flat),
            rope_lens=self._rope_lens.view(flat),
            query_start=self._query_start.view(slice(0, num_rows + 1)),
            seq_lens=self._seq_lens.view(some),
            slot_mapping=self._slot_mapping.view(flat),
            block_tables=self._block_tables.view(some, slice(0, width)),
            logits_rows=self._logits_rows.view(slice(0, len(sampled))),
            query_lens=lengths.tolist(),
            context_lens=contexts.tolist(),
            num_decode_rows=int((lengths == 1).sum()),
            block_size=self._block_size,
        )
        if self._copied is not None:
            self._copied.record()
        return BuiltBatch(batch, rows, order, sampled)

    def _fill_tokens(self, slots: IntArray, starts: IntArray, lengths: IntArray, ends: IntArray) -> None:
        num_tokens = int(ends[-1])
        flat_slots = np.repeat(slots, lengths)
        positions = np.arange(num_tokens) - np.repeat(ends - lengths, lengths) + np.repeat(starts, lengths)
        self._positions.array[:num_tokens] = positions
        self._flat_ids.array[:num_tokens] = self._token_ids[flat_slots, positions]
        self._rope_lens.array[:num_tokens] = np.maximum(self._num_prompt_tokens[flat_slots], positions + 1)
        blocks, offsets = np.divmod(positions, self._block_size)
        self._slot_mapping.array[:num_tokens] = (
            self._tables[flat_slots, blocks].astype(np.int64) * self._block_size + offsets
        )
