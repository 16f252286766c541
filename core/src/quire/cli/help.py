"""`quire COMMAND --help=WORD`: only the groups and flags that match."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

PREFIX = "--help="


def requested_help(arguments: Sequence[str]) -> str | None:
    """The word of `--help=WORD`, None where there is none."""
    return next((word[len(PREFIX) :] for word in arguments if word.startswith(PREFIX)), None)


def subparser_of(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the command, and of its own command, that the arguments name."""
    for word in arguments:
        parser = subcommands(parser).get(word, parser)
    return parser


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of a parser's commands, by name."""
    for action in parser._actions:  # argparse shows its actions in no other way
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def with_subcommands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its commands, at any depth."""
    yield parser
    for child in subcommands(parser).values():
        yield from with_subcommands(child)


def print_matching(parser: argparse.ArgumentParser, word: str) -> int:
    """Print whole groups that are called `word`, else the flags that hold it; the status is 2 where none does."""
    if word.lower() == "all":
        parser.print_help()
        return 0
    sought = word.lower().lstrip("-")
    formatter = parser._get_formatter()
    num_found = 0
    for group in parser._action_groups:
        is_whole = (group.title or "").lower() == sought
        actions = [action for action in group._group_actions if is_whole or _matches(action, sought)]
        if actions:
            formatter.start_section(group.title)
            formatter.add_arguments(actions)
            formatter.end_section()
            num_found += len(actions)
    if not num_found:
        titles = ", ".join(group.title or "" for group in parser._action_groups if group._group_actions)
        print(f"{parser.prog}: nothing matches {word!r}; the groups are: {titles}", file=sys.stderr)
        return 2
    print(formatter.format_help(), end="")
    return 0


def _matches(action: argparse.Action, sought: str) -> bool:
    if action.help == argparse.SUPPRESS:
        return False
    return any(sought in flag for flag in action.option_strings) or sought in (action.help or "").lower()
