"""Where tokens begin in their text."""

from __future__ import annotations

from collections.abc import Callable

PARTIAL = "\ufffd"


class TextPlaces:
    """The offset of each token in a text that may come later than its tokens do.

    Some tokens have no text of their own: special ones are skipped, and parts of a character are one together.
    Each token is looked for where the last one ended, or a little later.

    Args:
        is_special: whether a token may be left out of the text.
    """

    def __init__(self, is_special: Callable[[int], bool]) -> None:
        self._is_special = is_special
        self._text = ""
        self._start = 0  # of `_text`, in the whole text
        self._cursor = 0  # in `_text`: where the last token that was found ends
        self._slack = 1  # characters that tokens since then may have; decoded alone, some lose their space
        self._pending = 0  # characters that they have if they are as they read

    def add_text(self, text: str) -> None:
        """Add what has come."""
        self._start += self._cursor
        self._text = self._text[self._cursor :] + text
        self._cursor = 0

    def place(self, token_id: int, piece: str) -> int:
        """The offset of the next token, which reads so; where the text is not there yet, the likeliest one."""
        end = self._cursor + self._slack + len(piece)
        found = self._text.find(piece, self._cursor, end) if piece else -1
        if found >= 0:
            self._cursor = found + len(piece)
            self._slack, self._pending = 1, 0
            return self._start + found
        expected = self._start + self._cursor + self._pending
        self._slack += len(piece)
        if PARTIAL not in piece and not self._is_special(token_id):
            self._pending += len(piece)
        return expected
