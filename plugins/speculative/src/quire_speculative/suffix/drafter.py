"""The drafter `suffix`: the most frequent continuation of the longest suffix that occurred before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from quire.api.speculation import Drafter, DrafterContext, DraftRequest
from quire_speculative.suffix.automaton import Guess, Place, SuffixAutomaton
from quire_speculative.suffix.pool import Generation, OutputPool
from quire_speculative.suffix.settings import SuffixSettings

MAX_INDEXED_TOKENS = 8192
"""Tokens of prompts and ended outputs that one call indexes, about 20 ms of work; the rest waits for the next."""

MAX_FOLLOWED_TOKENS = 64
"""Latest tokens by which a request is found in earlier outputs; so many new ones are indexed in any call."""


class _Tracked:
    """A request's own automaton, and by the numbers of generations where its latest tokens stand in them."""

    __slots__ = ("automaton", "num_tokens", "places")

    def __init__(self) -> None:
        self.automaton = SuffixAutomaton()
        self.num_tokens = 0
        self.places: dict[int, Place] = {}

    def catch_up(self, token_ids: npt.NDArray[np.int32], earlier: Sequence[Generation]) -> None:
        """Index tokens that are new, and follow them in earlier outputs. `token_ids`: [n], from the first on."""
        new = token_ids[self.num_tokens :].tolist()
        self.num_tokens = len(token_ids)
        self.automaton.extend(new)
        known = self.places if len(new) <= MAX_FOLLOWED_TOKENS else {}
        recent: list[int] = []
        self.places = {}
        for generation in earlier:
            place = known.get(generation.number)
            if place is None:
                recent = recent or token_ids[-MAX_FOLLOWED_TOKENS:].tolist()
                place = generation.automaton.follow(Place(), recent)
            else:
                place = generation.automaton.follow(place, new)
            self.places[generation.number] = place


class SuffixDrafter(Drafter):
    """Proposes from the request's own text or from earlier outputs of its salt: whichever promises more."""

    def __init__(self, settings: SuffixSettings) -> None:
        self._settings = settings
        self._pool = OutputPool(settings)
        self._tracked: dict[str, _Tracked] = {}

    def propose(self, requests: Sequence[DraftRequest]) -> list[Sequence[int]]:
        """See `Drafter`. A request whose tokens are not all indexed yet gets no draft."""
        budget = MAX_INDEXED_TOKENS
        drafts: list[Sequence[int]] = []
        for request in requests:
            tracked = self._tracked.get(request.request_id)
            if tracked is None or tracked.num_tokens > len(request.token_ids):
                tracked = self._tracked[request.request_id] = _Tracked()
            earlier = self._pool.generations(request.salt)
            first = tracked.num_tokens
            tracked.catch_up(request.token_ids[: first + max(budget, MAX_FOLLOWED_TOKENS)], earlier)
            budget -= tracked.num_tokens - first
            is_behind = tracked.num_tokens < len(request.token_ids)
            drafts.append(() if is_behind else self._best_guess(tracked, earlier, request.max_drafts))
        self._pool.index_waiting(budget)
        return drafts

    def _best_guess(self, tracked: _Tracked, earlier: Sequence[Generation], max_drafts: int) -> Sequence[int]:
        settings = self._settings
        sources = [(tracked.automaton, tracked.automaton.repeated_suffix())]
        sources += [(each.automaton, tracked.places[each.number]) for each in earlier]
        best = Guess()
        for automaton, place in sources:
            limit = min(max_drafts, settings.max_drafts(place.length))
            if limit > best.expected:
                guess = automaton.guess(place.state, limit, settings.suffix_decoding_min_token_prob)
                if guess.expected > best.expected:
                    best = guess
        return best.token_ids

    def released(self, requests: Sequence[DraftRequest]) -> None:
        """See `Drafter`. What a preempted request wrote is kept too, and once more when it ends."""
        for request in requests:
            self._tracked.pop(request.request_id, None)
            self._pool.add(request.salt, request.token_ids[request.num_prompt_tokens :])

    def close(self) -> None:
        """See `Drafter`."""
        self._tracked.clear()
        self._pool.clear()


def make_suffix(context: DrafterContext) -> SuffixDrafter:
    """The factory of the spec `suffix`."""
    settings = context.settings
    return SuffixDrafter(settings if isinstance(settings, SuffixSettings) else SuffixSettings())
