"""`quire completion`: scripts that complete commands and flags, derived from the parsers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from quire.cli.help import subcommands
from quire.cli.plugin_flags import read_plugin_settings
from quire.plugins import PluginHost

HOW = """\
# quire completion bash >~/.local/share/bash-completion/completions/quire
# quire completion zsh >~/.zfunc/_quire        (a folder of $fpath, before compinit)
# quire completion fish >~/.config/fish/completions/quire.fish
"""

BASH = """\
_quire() {{
  local place="" word words="" current="${{COMP_WORDS[COMP_CWORD]}}"
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$place $word" in
{steps}
    esac
  done
  case "$place" in
{tables}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _quire quire
"""

ZSH = """\
#compdef quire
_quire() {{
  local place="" word words_=""
  for word in "${{(@)words[2,CURRENT-1]}}"; do
    case "$place $word" in
{steps}
    esac
  done
  case "$place" in
{tables}
  esac
  compadd -- ${{=words_}} || _files
}}
compdef _quire quire
"""


class CompletionCommand:
    """Prints a script for a shell to read."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The shell."""
        parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="whose script to print")

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
    name = "words" if shell == "bash" else "words_"
    tables = "\n".join(
        f'    "{" ".join(path)}") {name}="{" ".join(words)}" ;;' for path, words in table.items()
    )
    if shell == "bash":
        return HOW + BASH.format(steps=steps, tables=tables)
    first, rest = ZSH.split("\n", 1)
    return f"{first}\n{HOW}{rest.format(steps=steps, tables=tables)}"


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
