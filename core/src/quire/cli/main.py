"""`quire`: finds the commands, hands over to one, and turns errors into one clear line."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Container, Sequence
from typing import cast

from quire.api.errors import QuireError
from quire.api.protocols import Command
from quire.cli.help import print_matching, requested_help, subparser_of, with_subcommands
from quire.cli.parser import Parser, refuse
from quire.cli.plugin_flags import read_plugin_settings
from quire.cli.tools import HostTools
from quire.plugins import PluginHost, resolve_factory

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (2 after an error that Quire raised on purpose)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_debugging = "--debug" in arguments
    try:
        return _dispatch(arguments)
    except QuireError as error:
        if is_debugging:
            traceback.print_exc()
        print(f"quire: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("quire: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`| head`); keep the interpreter from complaining once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(arguments: list[str]) -> int:
    with contextlib.redirect_stdout(sys.stderr):  # what plugins print while imported is no part of any answer
        host = PluginHost.discover(read_plugin_settings(arguments), strict=False)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    parser, commands = build_parser(host, [chosen] if chosen in host.commands else [])
    if chosen != "plugins":
        _warn_of_failures(host)
    about = requested_help(arguments)
    if about is not None:
        return print_matching(subparser_of(parser, arguments), about)
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        refuse(subparser_of(parser, arguments), unknown)
    if chosen not in commands:
        parser.print_help()
        return 0
    return commands[chosen].run(args)


def build_parser(host: PluginHost, names: Container[str | None]) -> tuple[Parser, dict[str | None, Command]]:
    """The parser of all commands, with the flags of those named, which are made."""
    parser, subparsers = _parser()
    commands: dict[str | None, Command] = {}
    for spec in host.commands.specs():
        text = spec.help.replace("%", "%%")  # argparse fills in what follows a "%"
        subparser = subparsers.add_parser(
            spec.name,
            help=text,
            description=f"{text[:1].upper()}{text[1:]}.",
        )
        if spec.name in names:
            registration = host.commands.registration(spec.name)
            factory = cast(Callable[..., Command], resolve_factory(spec.factory, registration))
            command = factory(HostTools(host)) if spec.takes_tools else factory()
            command.add_arguments(subparser)
            for each in with_subcommands(subparser):
                if "--debug" not in each._option_string_actions:
                    each.add_argument("--debug", action="store_true", help="show the traceback of an error")
                each.epilog = "--help=WORD shows only groups and flags that match; --help=all shows all."
            commands[spec.name] = command
    return parser, commands


def _parser() -> tuple[Parser, argparse._SubParsersAction[Parser]]:
    parser = Parser(prog="quire", description="LLM inference, built of plugins.")
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version and exit")
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser, parser.add_subparsers(dest="command", metavar="COMMAND")


class _PrintVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from quire.plugins.builtin import core_version

        print(f"quire {core_version()}")
        parser.exit()


def _warn_of_failures(host: PluginHost) -> None:
    for record in host.records:
        if not record.is_enabled and record.error is not None:
            print(
                f"quire: warning: plugin {record.name!r} ({record.candidate.origin}) failed: "
                f"{record.reason} (see `quire plugins list`)",
                file=sys.stderr,
            )
