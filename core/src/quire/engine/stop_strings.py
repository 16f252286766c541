"""Finds stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class StopMatch:
    """A stop string that was found.

    Attributes:
        stop: the string.
        text_length: length that the text is to be cut to (with the string, where it is included).
    """

    stop: str
    text_length: int


class StopStringMatcher:
    """Finds the stop string that is complete first, however the text is split into pieces.

    Of several that end at the same character the longest wins. So the result is that of a check
    after every character, and does not depend on the tokens. (vLLM checks after every token and
    takes the first of the list; the two differ only where two stops end within one token.)
    The cost of a piece is bounded by the lengths of the piece and of the stops.

    Args:
        stops: not empty strings.
        include_in_output: matches are cut after the stop string and not before it.
    """

    def __init__(self, stops: Sequence[str], *, include_in_output: bool = False) -> None:
        self._by_last_char: dict[str, list[str]] = {}
        for stop in dict.fromkeys(stops):
            self._by_last_char.setdefault(stop[-1], []).append(stop)
        self._include_in_output = include_in_output
        self._overlap = max((len(stop) for stop in stops), default=1) - 1
        self._tail = ""
        self._num_chars = 0

    @property
    def num_held_back(self) -> int:
        """Trailing characters that may yet be cut, so that a stream does not show them."""
        return 0 if self._include_in_output else self._overlap

    def push(self, piece: str) -> StopMatch | None:
        """Add a piece of text; the match that it completes, if any."""
        window, start = self._extend(piece)
        best_end = len(window) + 1
        best: str | None = None
        # A match must end inside the new piece, so only stops whose last character is in it are tried.
        for stop in (stop for char in set(piece) for stop in self._by_last_char.get(char, ())):
            position = window.find(stop, max(0, start - len(stop) + 1))
            end = position + len(stop)
            if position >= 0 and (end < best_end or (end == best_end and best and len(stop) > len(best))):
                best, best_end = stop, end
        if best is None:
            return None
        end = self._num_chars - len(window) + best_end
        return StopMatch(best, end if self._include_in_output else end - len(best))

    def skip(self, piece: str) -> None:
        """Add a piece of text in which no match may end; later matches may begin in it."""
        self._extend(piece)

    def _extend(self, piece: str) -> tuple[str, int]:
        window = self._tail + piece
        start = len(self._tail)
        self._num_chars += len(piece)
        self._tail = window[max(0, len(window) - self._overlap) :]
        return window, start
