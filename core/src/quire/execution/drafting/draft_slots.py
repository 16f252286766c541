"""Which slots of the KV pool hold a draft model's KV for the token that the target has there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quire.api.step import BlockTableUpdate, PlanRow

IntArray = npt.NDArray[np.int64]
BlockIds = npt.NDArray[np.int32]


@dataclass(slots=True, frozen=True)
class _Proposal:
    """What was computed of a request: all of its known tokens, and drafts.

    Attributes:
        num_tokens: the request's known tokens. draft_ids: after them.
    """

    num_tokens: int
    draft_ids: list[int]


class DraftSlots:
    """A bit for each slot of the pool, and what each request's proposal has computed past its known tokens.

    A bit counts only below the last known token of a request: the target has written all of those slots, and
    whatever it writes is unset, unless the draft model has just computed the same tokens there.

    Args:
        num_blocks: of the pool. block_size: slots of a block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._is_valid = np.zeros((num_blocks, block_size), dtype=np.bool_)
        self._flat = self._is_valid.reshape(-1)
        self._block_size = block_size
        self._proposals: dict[int, _Proposal] = {}

    def first_missing(self, block_ids: BlockIds, num_tokens: int) -> int:
        """The first of a request's first tokens whose KV is missing; `num_tokens` where none is.

        Args:
            block_ids: the request's blocks, as many as hold these tokens.
            num_tokens: known ones but the last.
        """
        if num_tokens == 0:
            return 0
        is_valid = self._is_valid[block_ids].reshape(-1)[:num_tokens]
        first = int(is_valid.argmin())
        return num_tokens if is_valid[first] else first

    def num_computed(self, slot: int, num_tokens: int, draft_ids: Sequence[int]) -> int | None:
        """How many of a request's tokens and these drafts this proposal has computed; None: not to the last token.

        Args:
            slot: the request's.
            num_tokens: its known tokens.
            draft_ids: after them.
        """
        proposal = self._proposals.get(slot)
        if proposal is None or proposal.num_tokens != num_tokens:
            return None
        return num_tokens + _num_common(proposal.draft_ids, draft_ids)

    def note_computed(self, slots: IntArray) -> None:
        """The draft model has written these slots of the pool."""
        self._flat[slots] = True

    def note_proposed(self, slot: int, num_tokens: int, draft_ids: Sequence[int]) -> None:
        """The draft model has computed all of a request's tokens and these drafts."""
        self._proposals[slot] = _Proposal(num_tokens, list(draft_ids))

    def note_target(
        self, slots: IntArray, rows: Sequence[PlanRow], row_drafts: Sequence[Sequence[int]]
    ) -> None:
        """The target writes these slots of the pool in the coming step.

        Args:
            slots: of all its tokens, in the order of the rows.
            rows: of the step.
            row_drafts: the drafts that each row verifies.
        """
        self._flat[slots] = False
        start = 0
        for row, draft_ids in zip(rows, row_drafts, strict=True):
            proposal = self._proposals.get(row.slot)
            if proposal is not None and proposal.num_tokens == row.start + 1:
                num_kept = 1 + _num_common(proposal.draft_ids, draft_ids)
                self._flat[slots[start : start + num_kept]] = True
            start += row.num_tokens

    def note_tables(self, updates: Iterable[BlockTableUpdate]) -> None:
        """Block tables change: what was proposed into blocks that were replaced or taken is void.

        A request that takes a slot brings a whole table, so nothing is left of the one before.
        """
        for update in updates:
            proposal = self._proposals.get(update.slot)
            if proposal is None:
                continue
            end = proposal.num_tokens + len(proposal.draft_ids)
            if update.first_index * self._block_size < end:
                del self._proposals[update.slot]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Blocks are copied: (source, destination) ids."""
        ids = np.array(pairs)
        self._is_valid[ids[:, 1]] = self._is_valid[ids[:, 0]]


def _num_common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their starts."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))
