"""`quire completion`: scripts that complete commands and flags, derived from the parsers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from quire.cli.help import subcommands
from quire.cli.plugin_flags import read_plugin_settings
from quire.plugins import PluginHost

HOW = """\
# quire completion bash >~/.local/share/bash-completion/completions/quire
# quire completion zsh >~/.zfunc/_quire        (a folder of $fpath, before compinit)
# quire completion fish >~/.config/fish/completions/quire.fish
"""

FUNCTION = """\
_quire() {{
  local place="" word names=""
  for word in {words}; do
    case "$place $word" in
{steps}
    esac
  done
  case "$place" in
{tables}
  esac
  {offer}
}}
{register}
"""


@dataclass(slots=True, frozen=True)
class Shell:
    """What differs between shells of Bourne's kind.

    Attributes:
        first_line: of the script. words: those before the one to complete.
        offer: hands over `names`. register: makes `quire` complete with `_quire`.
    """

    first_line: str
    words: str
    offer: str
    register: str


SHELLS = {
    "bash": Shell(
        "",
        '"${COMP_WORDS[@]:1:COMP_CWORD-1}"',
        'COMPREPLY=($(compgen -W "$names" -- "${COMP_WORDS[COMP_CWORD]}"))',
        "complete -o default -F _quire quire",
    ),
    "zsh": Shell(
        "#compdef quire\n",
        '"${(@)words[2,CURRENT-1]}"',
        "compadd -- ${=names} || _files",
        "compdef _quire quire",
    ),
}


class CompletionCommand:
    """Prints a script for a shell to read."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The shell."""
        parser.add_argument("shell", choices=(*SHELLS, "fish"), help="whose script to print")

    def run(self, args: argparse.Namespace) -> int:
        """Print it."""
        from quire.cli.main import build_parser  # it imports this module's commands

        host = PluginHost.discover(read_plugin_settings([]), strict=False)
        parser, _ = build_parser(host, set(host.commands))
        print(script(parser, args.shell), end="")
        return 0


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script of a shell for all commands of a parser."""
    table = dict(command_table(parser))
    if shell == "fish":
        return HOW + "".join(f"{line}\n" for line in _fish(table))
    paths = [" ".join(path) for path in table if path]
    steps = "\n".join(f'      "{_parent(path)} {path.split()[-1]}") place="{path}" ;;' for path in paths)
    tables = "\n".join(
        f'    "{" ".join(path)}") names="{" ".join(words)}" ;;' for path, words in table.items()
    )
    what = SHELLS[shell]
    body = FUNCTION.format(
        words=what.words, steps=steps, tables=tables, offer=what.offer, register=what.register
    )
    return what.first_line + HOW + body


def command_table(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Each command's path, and the words that may follow: its commands and its flags."""
    children = subcommands(parser)
    flags = [
        flag
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        for flag in action.option_strings
    ]
    yield path, (*children, *flags)
    for name, child in children.items():
        yield from command_table(child, (*path, name))


def _parent(path: str) -> str:
    return path.rpartition(" ")[0]


def _fish(table: dict[tuple[str, ...], tuple[str, ...]]) -> Iterator[str]:
    for path, words in table.items():
        deeper = [other[-1] for other in table if len(other) == len(path) + 1 and other[:-1] == path]
        conditions = [f"__fish_seen_subcommand_from {name}" for name in path]
        if deeper:
            conditions.append(f"not __fish_seen_subcommand_from {' '.join(deeper)}")
        condition = "; and ".join(conditions) or "true"
        yield f"complete -c quire -n '{condition}' -a '{' '.join(words)}'"
