"""`quire complete`: let a model go on with texts, streaming."""

from __future__ import annotations

import argparse
import sys

from quire.api.commands import CommandTools
from quire.api.errors import QuireError
from quire_serving.cli.talkers import add_talker_flags, open_talker
from quire_serving.cli.terminal import read_line, say, show


class CompleteCommand:
    """Completes one text, or each line of the input."""

    def __init__(self, tools: CommandTools) -> None:
        self._tools = tools

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The prompt, the server, and the engine's flags."""
        parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="a text; without it, lines are read")
        parser.add_argument("-q", "--quick", metavar="TEXT", help="the same as PROMPT")
        add_talker_flags(parser, self._tools)

    def run(self, args: argparse.Namespace) -> int:
        """Complete until the end of the input; the status is 1 when a line failed."""
        prompt = args.quick if args.prompt is None else args.prompt
        with open_talker(args, self._tools) as talker:
            if prompt is not None:
                show(talker.complete(prompt))
                return 0
            is_interactive = sys.stdin.isatty()
            num_failed = 0
            while (line := read_line(is_interactive)) is not None:
                try:
                    if line:
                        show(talker.complete(line))
                except QuireError as error:
                    num_failed += 1
                    say(f"error: {error}")
        return 1 if num_failed else 0
