"""Offsets of tokens in texts."""

from __future__ import annotations

from quire_serving.text_places import TextPlaces


def test_tokens_follow_each_other() -> None:
    places = TextPlaces({9}.__contains__)
    places.add_text("ab ab")
    assert [places.place(0, piece) for piece in ("a", "b", " ", "ab")] == [0, 1, 2, 3]


def test_special_tokens_have_no_text_of_their_own() -> None:
    places = TextPlaces({9}.__contains__)
    places.add_text("ab")
    assert [places.place(9, "<s>"), places.place(0, "a"), places.place(9, "</s>"), places.place(1, "b")] == [
        0, 0, 1, 1,
    ]  # fmt: skip
    written = TextPlaces({9}.__contains__)
    written.add_text("<s>a")
    assert [written.place(9, "<s>"), written.place(0, "a")] == [0, 3]


def test_parts_of_a_character_are_one() -> None:
    places = TextPlaces({9}.__contains__)
    places.add_text("a\U0001f600b")
    pieces = ("a", "\ufffd", "\ufffd", "\ufffd", "b")
    assert [places.place(0, piece) for piece in pieces] == [0, 1, 1, 1, 2]


def test_text_may_come_after_its_tokens() -> None:
    places = TextPlaces({9}.__contains__)
    places.add_text("x")
    assert [places.place(0, "x"), places.place(0, "wor"), places.place(0, "l")] == [0, 1, 4]
    places.add_text("world!")
    assert [places.place(0, "d"), places.place(0, "!")] == [5, 6]


def test_a_token_that_lost_its_space_is_found() -> None:
    places = TextPlaces({9}.__contains__)
    places.add_text("San Francisco")
    assert [places.place(0, "San"), places.place(0, "Francisco")] == [0, 4]
