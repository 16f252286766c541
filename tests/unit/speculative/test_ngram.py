"""The drafter `ngram` against a search through the whole sequence."""

from __future__ import annotations

import random
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.api.request import SamplingParams
from quire.api.speculation import DraftRequest
from quire_speculative.ngram.drafter import NgramDrafter
from quire_speculative.ngram.index import MAX_CANDIDATES, NgramIndex
from quire_speculative.ngram.settings import NgramSettings

LENGTHS = st.integers(1, 4).flatmap(lambda low: st.tuples(st.just(low), st.integers(low, 6)))
SEQUENCES = st.integers(1, 4).flatmap(lambda size: st.lists(st.integers(0, size), min_size=1, max_size=60))


def search(tokens: list[int], shortest: int, longest: int) -> int | None:
    """The documented rule, by comparing everything."""
    occurrences = (
        end
        for end in range(len(tokens) - 1, shortest - 1, -1)
        if tokens[end - shortest : end] == tokens[-shortest:]
    )

    def common(end: int) -> int:
        lengths = range(1, min(longest, end) + 1)
        return max(length for length in lengths if tokens[end - length : end] == tokens[-length:])

    return max(islice(occurrences, MAX_CANDIDATES), key=lambda end: (common(end), end), default=None)


def array(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


@given(SEQUENCES, LENGTHS, st.integers(0, 2**32))
def test_index_finds_what_a_search_finds(tokens: list[int], lengths: tuple[int, int], seed: int) -> None:
    rng = random.Random(seed)
    index, position = NgramIndex(*lengths), 0
    while position < len(tokens):
        position = min(len(tokens), position + rng.randint(1, 5))
        index.extend(array(tokens[:position]))
        assert index.find(array(tokens[:position])) == search(tokens[:position], *lengths)
        at_once = NgramIndex(*lengths)
        at_once.extend(array(tokens[:position]))
        assert at_once.find(array(tokens[:position])) == index.find(array(tokens[:position]))


def test_longer_match_wins_and_the_latest_of_equal_ones() -> None:
    tokens = [1, 2, 3, 7, 2, 3, 8, 9, 2, 3, 6, 1, 2, 3]
    for lengths, found in (((2, 3), 3), ((2, 2), 10), ((1, 2), 10), ((3, 3), 3), ((4, 4), None)):
        index = NgramIndex(*lengths)
        index.extend(array(tokens))
        assert index.find(array(tokens)) == found


def test_only_the_latest_occurrences_are_compared() -> None:
    tokens = [5, 1, 2, *[9, 1, 2] * (MAX_CANDIDATES + 1), 5, 1, 2]
    index = NgramIndex(2, 3)
    index.extend(array(tokens))
    assert index.find(array(tokens)) == len(tokens) - 3


def drafter(shortest: int = 2, longest: int = 4) -> NgramDrafter:
    return NgramDrafter(NgramSettings(prompt_lookup_min=shortest, prompt_lookup_max=longest))


@pytest.mark.parametrize(
    ("tokens", "max_drafts", "draft"),
    [
        ([1, 2, 3, 4, 5, 1, 2], 3, [3, 4, 5]),
        ([1, 2, 3, 4, 5, 1, 2], 7, [3, 4, 5, 1, 2, 3, 4]),
        ([7, 7, 7], 4, [7, 7, 7, 7]),
        ([1, 2, 1, 2, 1], 5, [2, 1, 2, 1, 2]),
        ([1, 2, 3, 4], 5, []),
        ([1, 2], 5, []),
        ([1], 5, []),
    ],
)
def test_draft_is_what_followed_and_goes_on_with_itself(
    tokens: list[int], max_drafts: int, draft: list[int]
) -> None:
    request = DraftRequest("r", array(tokens), 1, max_drafts, SamplingParams())
    (proposed,) = drafter().propose([request])
    assert proposed == draft
    assert all(type(token) is int for token in proposed)


@given(SEQUENCES, st.integers(1, 9))
def test_drafts_as_the_search_would(tokens: list[int], max_drafts: int) -> None:
    (proposed,) = drafter().propose([DraftRequest("r", array(tokens), 1, max_drafts, SamplingParams())])
    start, sequence = search(tokens, 2, 4), list(tokens)
    for _ in range(max_drafts if start is not None else 0):
        sequence.append(sequence[start + len(sequence) - len(tokens)])
    assert proposed == sequence[len(tokens) :]


def test_requests_are_apart_and_may_be_left_out(make_request) -> None:
    first, second = [1, 2, 3, 1, 2], [1, 2, 9, 1, 2]
    one = drafter()
    assert one.propose([make_request(first, "a"), make_request(second, "b")])[1] == [9, 1, 2, 9, 1]
    grown = [*second, 9, 5, 6, 7, 5, 6]
    assert one.propose([make_request(grown, "b")]) == [[7, 5, 6, 7, 5]]
    assert one.propose([make_request(first, "a")]) == [[3, 1, 2, 3, 1]]


def test_fewer_tokens_are_a_new_request(make_request) -> None:
    one = drafter()
    one.propose([make_request([1, 2, 3, 1, 2, 8, 8, 1, 2])])
    assert one.propose([make_request([4, 5, 6, 4, 5])]) == [[6, 4, 5, 6, 4]]


def test_released_requests_leave_nothing_and_come_back(make_request) -> None:
    one = drafter()
    requests = [make_request([1, 2, 3, 1, 2], str(number)) for number in range(5)]
    proposed = one.propose(requests)
    one.released(requests)
    assert not one._indices
    one.released(requests)
    assert one.propose(requests) == proposed
    one.close()
    assert not one._indices
