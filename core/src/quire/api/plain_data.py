"""Plain data: what can be carried to another process as it is, and copied without calling anyone's code."""

from __future__ import annotations

from collections.abc import Mapping

MAX_DEPTH = 16


class NotPlainError(ValueError):
    """A value is not plain data; the text names it."""


class _FoundError(Exception):
    """Something is not plain: what is wrong with it, and the way to it, innermost step first."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.steps: list[str] = []


def plain_copy(value: object, place: str) -> object:
    """A copy of None, booleans, numbers, strings, and lists, tuples and mappings (of strings) of these.

    Tuples become lists and mappings dicts, so that the copy is the same wherever it arrives.

    Args:
        value: what is to be copied.
        place: what to call it in the message.

    Raises:
        NotPlainError: something in it is of another type, or it is nested too deeply.
    """
    try:
        return _copied(value, 0)
    except _FoundError as error:
        raise NotPlainError(f"{place}{''.join(reversed(error.steps))} {error}") from None


def _copied(value: object, depth: int) -> object:
    """The copy; messages are made where something is wrong only, since names may be long and many."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if depth >= MAX_DEPTH:
        raise _FoundError(f"is nested more than {MAX_DEPTH} deep: flatten it")
    if isinstance(value, list | tuple):
        entries = []
        for index, entry in enumerate(value):
            try:
                entries.append(_copied(entry, depth + 1))
            except _FoundError as error:
                error.steps.append(f"[{index}]")
                raise
        return entries
    if isinstance(value, Mapping):
        copied = {}
        for key, entry in value.items():
            if not isinstance(key, str):
                raise _FoundError(f"has the key {key!r}: keys are strings")
            try:
                copied[key] = _copied(entry, depth + 1)
            except _FoundError as error:
                error.steps.append(f"[{key[:64]!r}]")
                raise
        return copied
    raise _FoundError(
        f"is a {type(value).__name__}: give plain data (None, bool, int, float, str, lists and mappings)"
    )
