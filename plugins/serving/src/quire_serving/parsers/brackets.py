"""Finds where a bracketed text ends while it comes in pieces: one look at each character, no recursion."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_DEPTH = 64

_SPACE = re.compile(r"\s*")
_IN_STRING = {quote: re.compile(rf"[^{quote}\\]*") for quote in "\"'"}


@dataclass(slots=True, frozen=True)
class Syntax:
    """What a text between brackets is written in.

    Attributes:
        pairs: each opening bracket with its closing one.
        quotes: what strings begin and end with; a backslash escapes.
        plain: a run of characters that may stand outside of strings and brackets.
    """

    pairs: dict[str, str]
    quotes: str
    plain: re.Pattern[str]


JSON = Syntax({"{": "}", "[": "]"}, '"', re.compile(r"[\s\w.,:+-]*"))
PYTHON = Syntax({"{": "}", "[": "]", "(": ")"}, "\"'", re.compile(r"[\s\w.,:=+-]*"))


class BracketScanner:
    """Follows one bracketed text from before its first bracket.

    Attributes:
        is_closed: its last bracket has come.
        is_broken: a character has come that its syntax does not allow there.
    """

    def __init__(self, syntax: Syntax, starts: str) -> None:
        """Expect white space, then one of the brackets `starts`."""
        self._syntax = syntax
        self._starts = starts
        self._closing: list[str] = []
        self._quote = ""
        self._is_escaped = False
        self.is_closed = False
        self.is_broken = False

    def scan(self, text: str, position: int) -> int:
        """Go on at a position of a piece; returns where the text ends, is broken, or the piece is over."""
        while position < len(text) and not (self.is_closed or self.is_broken):
            if self._quote:
                position = self._scan_string(text, position)
            elif self._closing:
                position = self._scan_plain(text, position)
            else:
                position = self._scan_start(text, position)
        return position

    def _scan_string(self, text: str, position: int) -> int:
        if self._is_escaped:
            self._is_escaped = False
            return position + 1
        position = _end(_IN_STRING[self._quote], text, position)
        if position == len(text):
            return position
        if text[position] == "\\":
            self._is_escaped = True
        else:
            self._quote = ""
        return position + 1

    def _scan_plain(self, text: str, position: int) -> int:
        position = _end(self._syntax.plain, text, position)
        if position == len(text):
            return position
        character = text[position]
        if character in self._syntax.quotes:
            self._quote = character
        elif character == self._closing[-1]:
            self._closing.pop()
            self.is_closed = not self._closing
        elif character in self._syntax.pairs and len(self._closing) < MAX_DEPTH:
            self._closing.append(self._syntax.pairs[character])
        else:
            self.is_broken = True
            return position
        return position + 1

    def _scan_start(self, text: str, position: int) -> int:
        position = _end(_SPACE, text, position)
        if position == len(text):
            return position
        if text[position] not in self._starts:
            self.is_broken = True
            return position
        self._closing.append(self._syntax.pairs[text[position]])
        return position + 1


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position
