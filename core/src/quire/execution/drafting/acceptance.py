"""How many of each request's drafts are likely to be accepted, from those that were verified lately."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

OPTIMISM = 0.8
"""Share of drafts taken to be accepted at each position before anything is known."""
OPTIMISM_WEIGHT = 2.0
"""Drafts that this guess counts for among those of all requests."""
PRIOR_WEIGHT = 4.0
"""Drafts that the figures of all requests count for among a request's own."""
REQUEST_MEMORY = 0.8
"""Weight of a request's earlier outcomes after another: text is copied in bursts, so that few count."""
FADING = 0.99
"""Weight of a request's earlier outcomes after one of any request: who gets no drafts is tried again in time."""
ENGINE_MEMORY = 0.95
"""Weight of all requests' earlier outcomes after those of a step."""
RATE_GAIN = 0.05
AHEAD_POWER = 2.0
"""How fast a token's worth falls with the lead of its request; 2: the derivative of the harmonic mean."""
ANSWER_GAIN = 0.15
"""Weight of the latest answer in how often the drafter answers."""


class Acceptance:
    """Decayed counts of drafts examined and accepted, per position, for each slot and for all of them.

    A draft is examined when all before it were accepted. The chance of the draft at position j is a quotient of
    accepted and examined ones, drawn towards that of all requests; the chance that the first j are all accepted
    is the product over the positions up to j.

    Args:
        max_drafts: K, positions. max_num_seqs: slots.
    """

    def __init__(self, max_drafts: int, max_num_seqs: int) -> None:
        self._max_drafts = max_drafts
        self._first = np.tri(max_drafts + 1, max_drafts, -1)  # row n: ones at the first n positions
        drafts, accepted = np.indices((max_drafts + 1, max_drafts + 1))
        examined = np.minimum(accepted + 1, drafts)
        self._news = np.stack([self._first[accepted], self._first[examined]], axis=2)  # [K + 1, K + 1, 2, K]
        self._counts = np.zeros((max_num_seqs, 2, max_drafts))  # accepted, examined
        self._limits = [0] * max_num_seqs
        self._allowed = np.zeros((max_num_seqs, max_drafts))
        self._answered = [1.0] * max_num_seqs
        self._engine = np.zeros((2, max_drafts))
        self._engine_answered = 1.0
        self._prior: Floats = np.full(max_drafts, OPTIMISM)
        self._outcomes: dict[int, tuple[int, int]] = {}

    def assign(self, slot: int, max_drafts: int) -> None:
        """A request takes a slot: what was seen of the one before it is forgotten."""
        if slot in self._outcomes:
            self._absorb()
        self._counts[slot] = 0.0
        self._limits[slot] = min(max(max_drafts, 0), self._max_drafts)
        self._allowed[slot] = self._first[self._limits[slot]]
        self._answered[slot] = self._engine_answered

    def note_outcome(self, slot: int, num_drafts: int, num_accepted: int) -> None:
        """The first `num_accepted` of a request's drafts were the target's tokens."""
        if slot in self._outcomes:
            self._absorb()
        self._outcomes[slot] = (num_drafts, num_accepted)

    def note_answers(self, slots: Sequence[int], num_proposed: Sequence[int]) -> None:
        """The drafter was asked for drafts of these slots' requests."""
        for slot, num in zip(slots, num_proposed, strict=True):
            self._answered[slot] += ANSWER_GAIN * ((num > 0) - self._answered[slot])
        share = sum(num > 0 for num in num_proposed) / len(num_proposed)
        self._engine_answered += ANSWER_GAIN * (share - self._engine_answered)

    def survival(self, slots: Sequence[int]) -> Floats:
        """The chance that the first j drafts are all accepted, [R, K]; 0 beyond a request's own limit."""
        if self._outcomes:
            self._absorb()
        indices = np.array(slots, dtype=np.int64)
        counts = self._counts.take(indices, axis=0)
        chances = (counts[:, 0] + self._prior * PRIOR_WEIGHT) / (counts[:, 1] + PRIOR_WEIGHT)
        survival: Floats = np.multiply.accumulate(chances, axis=1)
        survival *= self._allowed.take(indices, axis=0)
        return survival

    def up_to(self, lengths: Sequence[int]) -> Floats:
        """[R, K]: ones at the first so many positions."""
        return self._first.take(lengths, axis=0)

    def answered(self, slots: Sequence[int], lengths: Sequence[int]) -> float:
        """How often the drafter proposes anything when it is asked for so many drafts of these slots' requests."""
        answered = self._answered
        drafts = sum(length * answered[slot] for slot, length in zip(slots, lengths, strict=True) if length)
        return drafts / sum(lengths)

    def allowed(self, slot: int) -> int:
        """The request's own limit."""
        return self._limits[slot]

    def _absorb(self) -> None:
        slots = list(self._outcomes)
        drafts, accepted = zip(*self._outcomes.values(), strict=True)
        self._outcomes.clear()
        news = self._news[drafts, accepted]  # [R, 2, K]
        self._counts *= FADING
        self._counts[slots] = self._counts[slots] * REQUEST_MEMORY + news
        self._engine *= ENGINE_MEMORY
        self._engine += news.sum(axis=0)
        self._prior = (self._engine[0] + OPTIMISM * OPTIMISM_WEIGHT) / (self._engine[1] + OPTIMISM_WEIGHT)

    def describe(self) -> str:
        """One line for the log."""
        return f"acceptance by position {', '.join(f'{chance:.2f}' for chance in self._prior)}"


class Progress:
    """How many tokens each request gets a step, and what another one is worth to it.

    Requests that run together mostly wait for the slowest: a token that puts one further ahead of the others
    makes nothing end sooner. So it counts as much as it shortens the harmonic mean of the requests' times.

    Args:
        max_num_seqs: slots.
    """

    def __init__(self, max_num_seqs: int) -> None:
        self._rates = np.ones(max_num_seqs)

    def assign(self, slot: int) -> None:
        """A request takes a slot."""
        self._rates[slot] = 1.0

    def note(self, slot: int, num_tokens: int) -> None:
        """A step gave the slot's request so many tokens."""
        self._rates[slot] += RATE_GAIN * (num_tokens - self._rates[slot])

    def note_plain(self) -> None:
        """A step gave every request one token."""
        self._rates += RATE_GAIN * (1.0 - self._rates)

    def weights(self, slots: Sequence[int]) -> Floats:
        """[R], 1 on average."""
        weights: Floats = self._rates.take(slots) ** -AHEAD_POWER
        weights /= weights.mean()
        return weights
