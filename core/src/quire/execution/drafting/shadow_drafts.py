"""Drafts that nobody verifies: what would have been accepted of them shows in the tokens that come."""

from __future__ import annotations

from collections.abc import Sequence


class ShadowDrafts:
    """For each slot the drafts that still agree with what its request got since they were proposed."""

    def __init__(self) -> None:
        self._drafts: dict[int, tuple[list[int], int]] = {}

    def __len__(self) -> int:
        return len(self._drafts)

    def __contains__(self, slot: int) -> bool:
        return slot in self._drafts

    def add(self, slot: int, draft: Sequence[int]) -> None:
        """Compare these with the tokens that the request gets from now on."""
        self._drafts[slot] = (list(draft), 0)

    def drop(self, slot: int) -> None:
        """The request left."""
        self._drafts.pop(slot, None)

    def compare(self, slot: int, token_ids: Sequence[int]) -> tuple[int, int] | None:
        """The request got tokens; how many drafts there were and how many agree, or None while that is open."""
        draft, num_equal = self._drafts[slot]
        for token_id in token_ids:
            is_equal = draft[num_equal] == token_id
            num_equal += is_equal
            if not is_equal or num_equal == len(draft):
                del self._drafts[slot]
                return len(draft), num_equal
        self._drafts[slot] = (draft, num_equal)
        return None
