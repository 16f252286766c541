"""Plain data: what can be carried to another process as it is, and copied without calling anyone's code."""

from __future__ import annotations

from collections.abc import Mapping

MAX_DEPTH = 16


class NotPlainError(ValueError):
    """A value is not plain data; the text names it."""


def plain_copy(value: object, place: str, depth: int = 0) -> object:
    """A copy of None, booleans, numbers, strings, and lists, tuples and mappings (of strings) of these.

    Tuples become lists and mappings dicts, so that the copy is the same wherever it arrives.

    Args:
        value: what is to be copied.
        place: what to call it in the message.
        depth: how many lists and mappings are around it.

    Raises:
        NotPlainError: something in it is of another type, or it is nested too deeply.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if depth >= MAX_DEPTH:
        raise NotPlainError(f"{place} is nested more than {MAX_DEPTH} deep: flatten it")
    if isinstance(value, list | tuple):
        return [plain_copy(entry, f"{place}[{index}]", depth + 1) for index, entry in enumerate(value)]
    if isinstance(value, Mapping):
        copied = {}
        for key, entry in value.items():
            if not isinstance(key, str):
                raise NotPlainError(f"{place} has the key {key!r}: keys are strings")
            copied[key] = plain_copy(entry, f"{place}[{key!r}]", depth + 1)
        return copied
    raise NotPlainError(
        f"{place} is a {type(value).__name__}: give plain data (None, bool, int, float, str, lists and mappings)"
    )
