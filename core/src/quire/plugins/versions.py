"""Ranges of hook API versions, as a plugin states them: ">=1,<2"."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping

from quire.api.errors import PluginError

Version = tuple[int, ...]

_COMPARE: Mapping[str, Callable[[Version, Version], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CLAUSE = re.compile(r"(>=|<=|==|!=|~=|>|<)\s*(\d+(?:\.\d+)*)")


def format_version(version: Version) -> str:
    """(1, 0) as "1.0"."""
    return ".".join(str(part) for part in version)


def is_in_range(version: Version, text: str) -> bool:
    """Whether `version` satisfies every comma-separated clause of `text`.

    The clauses are those of PEP 440 that make sense for plain numbers: >=, <=, ==, !=, ~=, > and <.
    Missing parts count as 0.

    Raises:
        PluginError: `text` is empty or holds something else.
    """
    clauses = [clause.strip() for clause in text.split(",")] if isinstance(text, str) else [""]
    return all([_satisfies(version, clause, text) for clause in clauses])


def _satisfies(version: Version, clause: str, text: str) -> bool:
    match = _CLAUSE.fullmatch(clause)
    if match is None:
        raise PluginError(f"api={text!r} is not a version range: write it like '>=1,<2'")
    bound = tuple(int(part) for part in match[2].split("."))
    if match[1] == "~=":
        if len(bound) < 2:
            raise PluginError(f"api={text!r}: ~= needs two numbers, like '~=1.0'")
        return _padded(version) >= _padded(bound) and version[: len(bound) - 1] == bound[:-1]
    return _COMPARE[match[1]](_padded(version), _padded(bound))


def _padded(version: Version) -> Version:
    return version + (0,) * (8 - len(version))
