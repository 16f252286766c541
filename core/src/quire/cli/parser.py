"""The parser of the command line: short usage, errors of one line."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

MANY_FLAGS = 12


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line; usage leaves many flags to the help's groups."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, "allow_abbrev": False, **keywords})

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}; see `{self.prog} --help`\n")


def refuse(parser: argparse.ArgumentParser, words: Sequence[str]) -> NoReturn:
    """Exit for words that a parser does not know; names the flag that the first may stand for."""
    known = [
        flag
        for action in parser._actions  # argparse shows its actions in no other way
        if action.help != argparse.SUPPRESS
        for flag in action.option_strings
    ]
    flag = words[0].partition("=")[0]
    close = difflib.get_close_matches(flag, known, n=1) if flag.startswith("-") else []
    parser.error(" ".join(["unknown:", *words, *(f"(did you mean {other}?)" for other in close)]))


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)
        # argparse forgets the indent of commands when it makes room for the longest name.
        self._action_max_length = 16

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],
        prefix: str | None = None,
    ) -> None:
        """Many flags are left out, but those that have to be given."""
        every = list(actions)
        needed = [action for action in every if not action.option_strings or action.required]
        if len(every) - len(needed) > MANY_FLAGS:
            every, groups = [argparse.Action(["flags"], "flags", nargs=0), *needed], ()
        super().add_usage(usage, every, groups, prefix)
