"""A suffix automaton: every substring of the texts it was fed, with how often each occurred."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

MAX_COUNTED_SUFFIXES = 32
"""Contexts of a new token whose counts grow, the longest first: see `SuffixAutomaton.extend`."""

MAX_WEIGHED_TOKENS = 32
"""Continuations of a state that a guess chooses from: those first seen, mostly the frequent ones."""

ROOT = 0


class Place(NamedTuple):
    """Where a text stands in an automaton: its longest known suffix has `length` tokens and leads to `state`."""

    state: int = ROOT
    length: int = 0


class Guess(NamedTuple):
    """Tokens that may follow. `expected`: how many of them will be accepted, by their frequencies."""

    token_ids: tuple[int, ...] = ()
    expected: float = 0.0


class SuffixAutomaton:
    """Built token by token in amortised constant time; it has at most 2 states per token.

    A state stands for the substrings that occurred at the same places. `_lengths` has the longest one's length,
    `_links` the state of its longest suffix that occurred elsewhere too, `_children` the state after each token
    that ever followed, `_counts` the number of occurrences.

    Source: Blumer et al. 1985; for several texts: Mohri, Moreno and Weinstein 2009.
    """

    __slots__ = ("_children", "_counts", "_lengths", "_links", "_state", "num_tokens")

    def __init__(self) -> None:
        self.num_tokens = 0
        self._lengths = [0]
        self._links = [-1]
        self._counts = [0]
        self._children: list[dict[int, int]] = [{}]
        self._state = ROOT

    def __len__(self) -> int:
        """Its states."""
        return len(self._lengths)

    def start_text(self) -> None:
        """What is fed next begins another text."""
        self._state = ROOT

    def extend(self, tokens: Iterable[int]) -> None:
        """Feed the next tokens of the current text.

        Of each token's suffixes, only the states of the `MAX_COUNTED_SUFFIXES` longest are counted: in text that
        repeats itself without end there are as many as repetitions, and a step must not take longer for it. The
        shortest contexts then count too little, which is where a draft would be shortest anyway.
        """
        lengths, links, counts, children = self._lengths, self._links, self._counts, self._children
        state = self._state
        for token in tokens:
            self.num_tokens += 1
            if token in children[state]:
                state = self._exact_child(state, token)
            else:
                parent, state = state, self._add_state(lengths[state] + 1, {}, 0)
                while parent >= 0 and token not in children[parent]:
                    children[parent][token] = state
                    parent = links[parent]
                links[state] = ROOT if parent < 0 else self._exact_child(parent, token)
            counted = state
            for _ in range(MAX_COUNTED_SUFFIXES):
                if counted == ROOT:
                    break
                counts[counted] += 1
                counted = links[counted]
        self._state = state

    def _add_state(self, length: int, children: dict[int, int], count: int) -> int:
        self._lengths.append(length)
        self._links.append(ROOT)
        self._children.append(children)
        self._counts.append(count)
        return len(self._lengths) - 1

    def _exact_child(self, state: int, token: int) -> int:
        """The state of `state`'s longest substring and `token` alone, split from that of longer ones if needed."""
        lengths, links, children = self._lengths, self._links, self._children
        child = children[state][token]
        if lengths[child] == lengths[state] + 1:
            return child
        clone = self._add_state(lengths[state] + 1, children[child].copy(), self._counts[child])
        links[clone] = links[child]
        links[child] = clone
        while state >= 0 and children[state].get(token) == child:
            children[state][token] = clone
            state = links[state]
        return clone

    def repeated_suffix(self) -> Place:
        """Where the current text's longest suffix that occurred before stands. For an automaton of one text."""
        state = self._links[self._state] if self._state else ROOT
        return Place(state, self._lengths[state])

    def follow(self, place: Place, tokens: Iterable[int]) -> Place:
        """Where the text of a place stands after more tokens, known or not. Amortised constant time per token.

        The automaton may have grown since `place`: its suffix is found still, if no more the longest.
        """
        lengths, links, children = self._lengths, self._links, self._children
        state, length = place
        while state and length <= lengths[links[state]]:  # the state was split
            state = links[state]
        for token in tokens:
            while state and token not in children[state]:
                state = links[state]
                length = lengths[state]
            if token in children[state]:
                state = children[state][token]
                length += 1
        return Place(state, length)

    def guess(self, state: int, max_tokens: int, min_probability: float) -> Guess:
        """Walk on from a state along the most frequent token, while all of them are likely enough together.

        Where a text ended, the walk goes on from the longest suffix that did not end there.
        """
        links, counts, children = self._links, self._counts, self._children
        token_ids: list[int] = []
        probability, expected = 1.0, 0.0
        while len(token_ids) < max_tokens:
            following = children[state]
            while state and not following:
                state = links[state]
                following = children[state]
            if state == ROOT:
                break
            if len(following) == 1:
                ((token, state),) = following.items()
            else:
                total = highest = token = 0
                for candidate, child in islice(following.items(), MAX_WEIGHED_TOKENS):
                    count = counts[child]
                    total += count
                    if count >= highest:
                        highest, token = count, candidate
                probability *= highest / total
                if probability < min_probability:
                    break
                state = following[token]
            token_ids.append(token)
            expected += probability
        return Guess(tuple(token_ids), expected)
