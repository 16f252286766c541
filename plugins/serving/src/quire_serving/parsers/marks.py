"""Finds markers in text that comes in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterable

SPACE = re.compile(r"\s*")


def skip_space(text: str, position: int) -> int:
    """The position of the first character from here that is not white space."""
    match = SPACE.match(text, position)
    return match.end() if match else position


def any_of(marks: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the marks, the longest where one begins with another; nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or r"(?!)")


def is_begun(text: str, position: int, marks: Iterable[str]) -> bool:
    """Whether all the text from here may become one of the marks."""
    return any(
        len(text) - position < len(mark) and mark.startswith(text[position : position + len(mark)])
        for mark in marks
    )


def begun_mark(text: str, position: int, marks: Iterable[str]) -> int:
    """Where, from the position on, a mark may have begun that is not complete; the end of the text if none has."""
    longest = max(map(len, marks), default=1) - 1
    starts = range(max(position, len(text) - longest), len(text))
    return next((start for start in starts if is_begun(text, start, marks)), len(text))
