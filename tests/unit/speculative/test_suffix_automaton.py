"""The suffix automaton against a search through all texts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive_suffixes import NaiveTexts

from quire_speculative.suffix import automaton as module
from quire_speculative.suffix.automaton import Guess, Place, SuffixAutomaton

TEXTS = st.integers(1, 3).flatmap(
    lambda size: st.lists(st.lists(st.integers(0, size), min_size=1, max_size=30), min_size=1, max_size=4)
)
TEXT = st.integers(1, 3).flatmap(lambda size: st.lists(st.integers(0, size), min_size=1, max_size=40))


@pytest.fixture(autouse=True, scope="module")
def count_everything():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_COUNTED_SUFFIXES", 10**6)
        yield


def fed(texts: list[list[int]]) -> SuffixAutomaton:
    automaton = SuffixAutomaton()
    for text in texts:
        automaton.start_text()
        automaton.extend(text)
    return automaton


def check_guess(automaton: SuffixAutomaton, naive: NaiveTexts, place: Place, context: list[int]) -> None:
    for min_probability in (0.0, 0.3, 0.7):
        guess = automaton.guess(place.state, 6, min_probability)
        token_ids, expected = naive.guess(context, 6, min_probability)
        assert list(guess.token_ids) == token_ids
        assert guess.expected == pytest.approx(expected)


@given(TEXT, st.integers(0, 2**32))
def test_repeated_suffix_and_guess_of_a_growing_text(text: list[int], seed: int) -> None:
    rng = random.Random(seed)
    automaton, position = SuffixAutomaton(), 0
    while position < len(text):
        step = rng.randint(1, 4)
        automaton.extend(text[position : position + step])
        position = min(len(text), position + step)
        naive = NaiveTexts([text[:position]])
        place = automaton.repeated_suffix()
        assert place.length == naive.longest_known_suffix(text[:position], at_least=2)
        check_guess(automaton, naive, place, text[position - place.length : position])
    assert automaton.num_tokens == len(text)
    assert len(automaton) <= 2 * len(text) + 1


@given(TEXTS, TEXT)
def test_a_text_is_followed_in_others(texts: list[list[int]], followed: list[int]) -> None:
    automaton, naive, place = fed(texts), NaiveTexts(texts), Place()
    for position in range(1, len(followed) + 1):
        place = automaton.follow(place, followed[position - 1 : position])
        assert place.length == naive.longest_known_suffix(followed[:position])
        check_guess(automaton, naive, place, followed[position - place.length : position])
    assert automaton.follow(Place(), followed) == place


@given(TEXTS, TEXT, st.integers(0, 2**32))
def test_places_outlive_growth(texts: list[list[int]], followed: list[int], seed: int) -> None:
    rng = random.Random(seed)
    automaton, place, position = SuffixAutomaton(), Place(), 0
    for number, text in enumerate(texts, start=1):
        automaton.start_text()
        automaton.extend(text)
        step = rng.randint(0, 8)
        place = automaton.follow(place, followed[position : position + step])
        position = min(len(followed), position + step)
        naive = NaiveTexts(texts[:number])
        assert place.length <= naive.longest_known_suffix(followed[:position])
        check_guess(automaton, naive, place, followed[position - place.length : position])


def test_the_most_frequent_token_then_the_one_first_seen_last() -> None:
    automaton = fed([[1, 2, 5], [1, 2, 6], [1, 2, 5], [1, 3], [1, 4]])
    after_one = automaton.follow(Place(), [1])
    assert automaton.guess(after_one.state, 2, 0.0) == Guess((2, 5), pytest.approx(0.6 + 0.6 * 2 / 3))
    assert automaton.guess(after_one.state, 2, 0.5).token_ids == (2,)
    assert automaton.guess(automaton.follow(Place(), [1, 2, 6]).state, 2, 0.0) == Guess()
    automaton.start_text()
    automaton.extend([1, 2, 6])
    assert automaton.guess(automaton.follow(Place(), [1, 2]).state, 1, 0.0) == Guess((6,), 0.5)


def test_guess_past_the_end_of_a_loop() -> None:
    automaton = fed([[1, 2, 3] * 3])
    place = automaton.repeated_suffix()
    assert place.length == 6
    assert automaton.guess(place.state, 7, 0.1) == Guess((1, 2, 3, 1, 2, 3, 1), 7.0)


def test_unknown_tokens_lead_back_to_the_root() -> None:
    automaton = fed([[1, 2, 3]])
    assert automaton.follow(Place(), [1, 2, 9]) == Place()
    assert automaton.guess(Place().state, 3, 0.0) == Guess()
    assert automaton.follow(Place(), [9, 2]).length == 1
    empty = SuffixAutomaton()
    assert empty.repeated_suffix() == Place()
    assert empty.follow(Place(), [4]) == Place()


def test_counting_and_weighing_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_COUNTED_SUFFIXES", 4)
    loop = fed([[7] * 100])
    assert sum(loop._counts) == 1 + 2 + 3 + 4 * 97
    place = loop.repeated_suffix()
    assert loop.guess(place.state, 3, 0.5).token_ids == (7, 7, 7)

    monkeypatch.setattr(module, "MAX_WEIGHED_TOKENS", 3)
    branching = fed([[1, token] for token in (5, 6, 7, 8, 8, 8)])
    assert branching.guess(branching.follow(Place(), [1]).state, 1, 0.0) == Guess((7,), pytest.approx(1 / 3))
