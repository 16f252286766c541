"""Lines in, pieces of text out, remarks on standard error."""

from __future__ import annotations

import sys
from collections.abc import Generator


def read_line(is_interactive: bool) -> str | None:
    """The next line, None at the end of the input or on Ctrl-C."""
    try:
        if is_interactive:
            return input("> ").strip()
        line = sys.stdin.readline()
    except (EOFError, KeyboardInterrupt):
        say("")
        return None
    return line.strip() if line else None


def show(pieces: Generator[str, None, None]) -> str:
    """Print an answer as it grows; Ctrl-C stops it and keeps what was said, which is returned."""
    shown = ""
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
            shown += piece
    except KeyboardInterrupt:
        say(" (stopped)")
    finally:
        pieces.close()
        if shown:
            print(flush=True)
    return shown


def say(text: str) -> None:
    """A remark."""
    print(text, file=sys.stderr, flush=True)
