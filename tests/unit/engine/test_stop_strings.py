"""The stop-string matcher against a check after every character."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.engine.stop_strings import StopMatch, StopStringMatcher


def feed(pieces, stops, include=False):
    matcher = StopStringMatcher(stops, include_in_output=include)
    for piece in pieces:
        match = matcher.push(piece)
        if match is not None:
            return match
    return None


def oracle(text, stops, include=False):
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return StopMatch(stop, end if include else end - len(stop))
    return None


def test_a_stop_string_across_pieces_is_found():
    assert feed(["ab", "cS", "T", "OPd"], ["STOP"]) == StopMatch("STOP", 3)
    assert feed(["ab", "cS", "T", "OPd"], ["STOP"], include=True) == StopMatch("STOP", 7)


def test_the_match_that_is_complete_first_wins_and_of_equals_the_longest():
    assert feed(["xabcd"], ["abcd", "bc"]) == StopMatch("bc", 2)
    assert feed(["xabc"], ["bc", "abc", "c"]) == StopMatch("abc", 1)
    assert feed(["later early"], ["early", "later"]) == StopMatch("later", 0)


def test_skipped_text_holds_no_match_but_may_begin_one():
    matcher = StopStringMatcher(["ab"])
    matcher.skip("ab xa")
    assert matcher.push("c") is None
    matcher = StopStringMatcher(["ab"])
    matcher.skip("ab xa")
    assert matcher.push("b") == StopMatch("ab", 4)


def test_no_stops_find_nothing_and_hold_nothing_back():
    matcher = StopStringMatcher([])
    assert matcher.push("text") is None
    assert matcher.num_held_back == 0


@pytest.mark.parametrize("include,expected", [(False, 3), (True, 0)])
def test_the_longest_stop_less_one_is_held_back(include, expected):
    assert StopStringMatcher(["ab", "abcd"], include_in_output=include).num_held_back == expected


@settings(deadline=None, max_examples=400)
@given(
    st.lists(st.text("ab", max_size=5), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4),
    st.booleans(),
)
def test_any_split_gives_the_result_of_a_check_after_every_character(pieces, stops, include):
    assert feed(pieces, stops, include) == oracle("".join(pieces), stops, include)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.text("ab", max_size=5), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4),
)
def test_text_shown_before_a_match_is_never_cut(pieces, stops):
    matcher, length, shown = StopStringMatcher(stops), 0, 0
    for piece in pieces:
        match = matcher.push(piece)
        if match is not None:
            assert match.text_length >= shown
            return
        length += len(piece)
        shown = max(shown, length - matcher.num_held_back)


def test_the_window_does_not_grow_with_the_text():
    matcher = StopStringMatcher(["x" * 100, "yz"])
    for _ in range(1000):
        matcher.push("ab" * 10)
    assert len(matcher._tail) == 99
