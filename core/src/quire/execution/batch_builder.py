"""From a plan to the flat batch: one persistent buffer, filled with a few vectorised copies a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from quire.api.batch import ForwardBatch
from quire.api.step import PlanRow, SlotAssignment, StepPlan
from quire.execution.step_buffers import Arrays, Shape, StepBuffer, Transfers, transfers_of

IntArray = NDArray[np.int64]
Fill = Callable[[Arrays, list[PlanRow]], None]
"""Writes more of a step's arrays, for its rows in the batch's order."""

_ROW_FIELDS = {
    "seq_lens": torch.int32,
    "logits_rows": torch.int64,
    "unread_rows": torch.int64,
    "unread_slots": torch.int64,
    "sampled_slots": torch.int64,
    "temperature": torch.float64,
    "min_p": torch.float64,
    "top_p": torch.float64,
    "draws": torch.float64,
    "top_k": torch.int64,
}
_TOKEN_FIELDS = ("token_ids", "positions", "rope_lens", "slot_mapping")


@dataclass(slots=True, frozen=True)
class BatchLimits:
    """Sizes of the persistent buffers.

    Attributes:
        max_drafts: most draft tokens of one request in a step.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    max_drafts: int = 0

    @property
    def max_rows(self) -> int:
        """Most rows of a batch: a row with drafts is computed as one row for each of its tokens."""
        if self.max_drafts == 0:
            return self.max_num_seqs
        return min(self.max_num_seqs * (1 + self.max_drafts), self.max_num_batched_tokens)


@dataclass(slots=True, frozen=True)
class BuiltBatch:
    """A batch, and how it relates to the plan.

    Attributes:
        rows: the plan's rows in the batch's order.
        plan_indices: for each of `rows` its index in the plan.
        sampled_rows: indices of those of which tokens are sampled, in the order of `batch.logits_rows`, which
            has one entry for each of them, and one more for each draft.
        slot_mapping: int64 [T], the batch's, on the host.
    """

    batch: ForwardBatch
    rows: list[PlanRow]
    plan_indices: list[int]
    sampled_rows: list[int]
    slot_mapping: IntArray


class BatchBuilder:
    """Keeps the token ids and the block table of every slot, and builds each step's batch.

    Args:
        limits: sizes. device: where batches lie. transfers: to it; None: those of its type.

    Attributes:
        transfers: to the device and back; None: its memory is the host's.
    """

    def __init__(self, limits: BatchLimits, device: torch.device, transfers: Transfers | None = None) -> None:
        self._block_size = limits.block_size
        self._max_blocks = -(-limits.max_model_len // limits.block_size)
        self._token_ids = np.zeros((limits.max_num_seqs, limits.max_model_len + 1), dtype=np.int32)
        self._tables = np.zeros((limits.max_num_seqs, self._max_blocks), dtype=np.int32)
        self._num_prompt_tokens = np.zeros(limits.max_num_seqs, dtype=np.int64)
        self._num_slots = np.zeros(limits.max_num_seqs, dtype=np.int64)
        self._num_known = [0] * limits.max_num_seqs
        self._num_padded = min(limits.max_rows, limits.max_num_batched_tokens)
        self.transfers = transfers_of(device) if transfers is None else transfers
        self._buffer = StepBuffer(_fields(limits, self._max_blocks), self.transfers)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The step's arrays on the device, whole; see `StepBuffer`."""
        return self._buffer.tensors

    def assign(self, assignment: SlotAssignment) -> None:
        """A request takes a slot."""
        token_ids = assignment.token_ids
        self._token_ids[assignment.slot, : len(token_ids)] = token_ids
        self._num_prompt_tokens[assignment.slot] = assignment.num_prompt_tokens
        self._num_known[assignment.slot] = len(token_ids)

    def apply(self, plan: StepPlan) -> None:
        """Bring the block tables up to date with a plan."""
        for update in plan.table_updates:
            end = update.first_index + len(update.block_ids)
            self._tables[update.slot, update.first_index : end] = update.block_ids
            self._num_slots[update.slot] = end * self._block_size

    def set_tokens(self, slot: int, position: int, token_ids: list[int]) -> None:
        """Record sampled tokens, which end at the last known one; inputs of the next step."""
        end = position + len(token_ids)
        self._token_ids[slot, position:end] = token_ids
        self._num_known[slot] = end

    def set_drafts(self, slot: int, token_ids: list[int]) -> None:
        """Record drafts behind the known tokens, for the next step."""
        start = self._num_known[slot]
        self._token_ids[slot, start : start + len(token_ids)] = token_ids

    def num_known(self, slot: int) -> int:
        """How many tokens the request in a slot has: prompt, and output so far."""
        return self._num_known[slot]

    def num_slots(self, slot: int) -> int:
        """How many tokens of the request in a slot have a place in the KV cache."""
        return int(self._num_slots[slot])

    def block_ids(self, slot: int, num_tokens: int) -> NDArray[np.int32]:
        """The blocks of a slot's first tokens: a view, valid until the next plan is applied."""
        return self._tables[slot, : -(-num_tokens // self._block_size)]

    def known_tokens(self, slot: int) -> NDArray[np.int32]:
        """The known tokens of a slot: a read-only view, valid until the slot is assigned again."""
        view = self._token_ids[slot, : self._num_known[slot]].view()
        view.flags.writeable = False
        return view

    def token_range(self, slot: int, start: int, stop: int) -> list[int]:
        """Known token ids of a slot."""
        ids: list[int] = self._token_ids[slot, start:stop].tolist()
        return ids

    def num_prompt_tokens(self, slot: int) -> int:
        """Prompt length of the request in a slot."""
        return int(self._num_prompt_tokens[slot])

    def build(self, plan: StepPlan, fill: Fill | None = None) -> BuiltBatch:
        """The batch of a plan, rows of one token first. Valid until the next call.

        A row with drafts becomes one row for each of its tokens: all KV of a step is written before any is
        read, so the attention of each is that of a decode, bit for bit, whatever was drafted.

        Behind its rows, up to as many as a step may have, lies padding: rows without a slot, of no context.

        Args:
            plan: the step. Tokens that the host does not know yet are whatever was left in their places.
            fill: writes more arrays of the step, before they are copied to the device.
        """
        order = sorted(range(len(plan.rows)), key=lambda index: _is_prompt_part(plan.rows[index]))
        rows = [plan.rows[index] for index in order]
        slots, starts, lengths = _split_drafts(rows)
        num_rows = len(slots)
        ends = np.cumsum(lengths)
        contexts = starts + lengths
        num_tokens = int(ends[-1])
        sampled = [index for index, row in enumerate(rows) if row.is_sampled]
        logits_rows = _logits_rows(rows)
        num_logits = len(logits_rows)
        width = -(-int(contexts.max()) // self._block_size)
        arrays = self._buffer.begin()
        self._fill_tokens(arrays, slots, starts, lengths, ends)
        arrays["slot_mapping"][num_tokens : self._num_padded] = -1
        arrays["query_start"][1 : num_rows + 1] = ends
        arrays["seq_lens"][:num_rows] = contexts
        arrays["seq_lens"][num_rows:] = 0
        arrays["logits_rows"][:num_logits] = logits_rows
        arrays["block_tables"][:num_rows, :width] = self._tables[slots, :width]
        if fill is not None:
            fill(arrays, rows)
        self._buffer.send(num_rows)
        tensors = self._buffer.tensors
        batch = ForwardBatch(
            token_ids=tensors["token_ids"][:num_tokens],
            positions=tensors["positions"][:num_tokens],
            rope_lens=tensors["rope_lens"][:num_tokens],
            query_start=tensors["query_start"][: num_rows + 1],
            seq_lens=tensors["seq_lens"][:num_rows],
            slot_mapping=tensors["slot_mapping"][:num_tokens],
            block_tables=tensors["block_tables"][:num_rows, :width],
            logits_rows=tensors["logits_rows"][:num_logits],
            query_lens=lengths.tolist(),
            context_lens=contexts.tolist(),
            num_decode_rows=int((lengths == 1).sum()),
            block_size=self._block_size,
        )
        return BuiltBatch(batch, rows, order, sampled, arrays["slot_mapping"][:num_tokens])

    def _fill_tokens(
        self, arrays: Arrays, slots: IntArray, starts: IntArray, lengths: IntArray, ends: IntArray
    ) -> None:
        num_tokens = int(ends[-1])
        flat_slots = np.repeat(slots, lengths)
        positions = np.arange(num_tokens) - np.repeat(ends - lengths, lengths) + np.repeat(starts, lengths)
        arrays["positions"][:num_tokens] = positions
        arrays["token_ids"][:num_tokens] = self._token_ids[flat_slots, positions]
        arrays["rope_lens"][:num_tokens] = np.maximum(self._num_prompt_tokens[flat_slots], positions + 1)
        blocks, offsets = np.divmod(positions, self._block_size)
        arrays["slot_mapping"][:num_tokens] = (
            self._tables[flat_slots, blocks].astype(np.int64) * self._block_size + offsets
        )


def _fields(limits: BatchLimits, max_blocks: int) -> dict[str, tuple[Shape, torch.dtype]]:
    """The arrays of a step; the block tables, of which most steps have few rows, come last."""
    tokens, rows = limits.max_num_batched_tokens, limits.max_rows
    fields: dict[str, tuple[Shape, torch.dtype]] = {"query_start": ((rows + 1,), torch.int32)}
    fields |= {name: ((rows,), dtype) for name, dtype in _ROW_FIELDS.items()}
    fields |= {name: ((tokens,), torch.int64) for name in _TOKEN_FIELDS}
    return fields | {"block_tables": ((rows, max_blocks), torch.int32)}


def _is_prompt_part(row: PlanRow) -> bool:
    """Whether the row is neither a decode nor drafts to verify."""
    return row.num_tokens - row.num_drafts != 1


def _split_drafts(rows: list[PlanRow]) -> tuple[IntArray, IntArray, IntArray]:
    """Slot, first position and length of the batch's rows, those with drafts token by token."""
    slots = np.fromiter((row.slot for row in rows), np.int64, len(rows))
    starts = np.fromiter((row.start for row in rows), np.int64, len(rows))
    lengths = np.fromiter((row.num_tokens for row in rows), np.int64, len(rows))
    num_drafts = np.fromiter((row.num_drafts for row in rows), np.int64, len(rows))
    if not num_drafts.any():
        return slots, starts, lengths
    counts = num_drafts + 1
    first = np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(starts, counts) + np.arange(len(first)) - first
    return np.repeat(slots, counts), starts, np.repeat(lengths - num_drafts, counts)


def _logits_rows(rows: list[PlanRow]) -> list[int]:
    """The tokens whose logits are sampled from: the last of each sampled row, and its drafts."""
    indices: list[int] = []
    end = 0
    for row in rows:
        end += row.num_tokens
        if row.is_sampled:
            indices.extend(range(end - row.num_drafts - 1, end))
    return indices
