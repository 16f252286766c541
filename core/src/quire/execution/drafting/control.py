"""How many drafts are worth asking for: what decides it, and the decision that never changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(slots=True, frozen=True)
class DraftLimits:
    """What to ask the drafter for now.

    Attributes:
        limits: most drafts of each request; 0: do not ask for it.
        is_shadow: the proposals are only compared with the tokens that come.
    """

    limits: list[int]
    is_shadow: bool = False


class DraftControl(Protocol):
    """Decides after each step how many drafts the next one verifies, from what steps took and gave.

    It looks at no clock: all times are given.
    """

    def assign(self, slot: int, max_drafts: int) -> None:
        """A request takes a slot. It never gets more than `max_drafts` drafts; 0: none."""
        ...

    def limits(self, slots: Sequence[int]) -> DraftLimits:
        """Called once before each step.

        Args:
            slots: of the requests that have just got a token, and could get drafts in the coming step.
        """
        ...

    def trim(self, slots: Sequence[int], num_proposed: Sequence[int]) -> list[int]:
        """How many of the proposed drafts to keep; not called in a shadow round.

        Args:
            slots: those of `limits`.
            num_proposed: drafts that each has got.
        """
        ...

    def shadow(self, slots: Sequence[int], drafts: Sequence[Sequence[int]]) -> None:
        """The proposals of a shadow round."""
        ...

    def note_tokens(
        self, slots: Sequence[int], num_drafts: Sequence[int], token_ids: Sequence[Sequence[int]]
    ) -> None:
        """A step verified so many drafts of each request, and gave it these tokens: one more than it accepted."""
        ...

    @property
    def is_comparing(self) -> bool:
        """Whether proposals of a shadow round wait for tokens to be compared with."""
        ...

    def note_plain(self) -> None:
        """A step gave every request one token; instead of `note_tokens` where nothing is compared."""
        ...

    def note_step(self, num_rows: int, num_drafts: int, seconds: float) -> None:
        """A step of decoding rows only, with so many drafts over all of them, took so long."""
        ...

    def note_propose(self, num_requests: int, seconds: float) -> None:
        """What `limits` asked for, for so many requests, took so long."""
        ...

    def calibrate(self, step_times: Sequence[tuple[int, float]], propose_s: float) -> None:
        """Times measured at the start.

        Args:
            step_times: tokens of a step, each in a row of its own, and its seconds.
            propose_s: of one request at full length.
        """
        ...

    def describe(self) -> str:
        """One line for the log."""
        ...


class FixedControl:
    """Every request gets its full number of drafts in every step.

    Args:
        max_drafts: most drafts of a request. max_num_seqs: slots.
    """

    def __init__(self, max_drafts: int, max_num_seqs: int) -> None:
        self._max_drafts = max_drafts
        self._allowed = [max_drafts] * max_num_seqs

    def assign(self, slot: int, max_drafts: int) -> None:
        """A request takes a slot."""
        self._allowed[slot] = min(max_drafts, self._max_drafts)

    def limits(self, slots: Sequence[int]) -> DraftLimits:
        """The requests' own limits."""
        return DraftLimits([self._allowed[slot] for slot in slots])

    def trim(self, slots: Sequence[int], num_proposed: Sequence[int]) -> list[int]:
        """Keep all."""
        return list(num_proposed)

    def shadow(self, slots: Sequence[int], drafts: Sequence[Sequence[int]]) -> None:
        """There are no shadow rounds."""

    def note_tokens(
        self, slots: Sequence[int], num_drafts: Sequence[int], token_ids: Sequence[Sequence[int]]
    ) -> None:
        """Nothing depends on it."""

    @property
    def is_comparing(self) -> bool:
        """There are no shadow rounds."""
        return False

    def note_plain(self) -> None:
        """Nothing depends on it."""

    def note_step(self, num_rows: int, num_drafts: int, seconds: float) -> None:
        """Nothing depends on it."""

    def note_propose(self, num_requests: int, seconds: float) -> None:
        """Nothing depends on it."""

    def calibrate(self, step_times: Sequence[tuple[int, float]], propose_s: float) -> None:
        """Nothing depends on it."""

    def describe(self) -> str:
        """One line for the log."""
        return f"drafts: always up to {self._max_drafts}"
