"""`quire chat`: talk to a chat model; answers stream, and the conversation is kept."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from quire.api.commands import CommandTools
from quire.api.errors import QuireError
from quire_serving.cli.talkers import Talker, add_talker_flags, open_talker
from quire_serving.cli.terminal import read_line, say, show

HELP = """\
/reset           forget the conversation
/system TEXT     forget it and set the system message (without TEXT: drop it)
/help            show this
/exit            leave (so does end of input)
Ctrl-C stops an answer, and leaves when there is none."""


class ChatCommand:
    """An interactive conversation; from a pipe, one line is one message."""

    def __init__(self, tools: CommandTools) -> None:
        self._tools = tools

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The system message, the server, and the engine's flags."""
        parser.add_argument("--system", metavar="TEXT", help="a system message")
        parser.add_argument("-q", "--quick", metavar="TEXT", help="ask this only, and exit")
        add_talker_flags(parser, self._tools)

    def run(self, args: argparse.Namespace) -> int:
        """Converse until the end of the input; the status is 1 when a message got no answer."""
        with open_talker(args, self._tools) as talker:
            conversation = Conversation(talker, args.system)
            if args.quick is None:
                conversation.run()
            else:
                conversation.ask(args.quick)
        return 1 if conversation.num_failed else 0


class Conversation:
    """A conversation and its loop: read a line, obey it or answer it.

    Attributes:
        num_failed: messages that got an error for an answer.
    """

    def __init__(self, talker: Talker, system: str | None = None) -> None:
        self.talker = talker
        self.system = system
        self.history: list[dict[str, str]] = []
        self.num_failed = 0
        self.commands: dict[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/system": self._set_system,
            "/help": lambda _: say(HELP),
        }

    def run(self) -> None:
        """Until /exit, the end of the input, or Ctrl-C at the prompt."""
        is_interactive = sys.stdin.isatty()
        if is_interactive:
            say(f"{self.talker.name}: /help shows the commands")
        while True:
            line = read_line(is_interactive)
            if line is None or line.split(" ")[0] in ("/exit", "/quit"):
                return
            if line:
                self._take(line)

    def ask(self, text: str) -> None:
        """Print the answer to a message as it grows; raises QuireError where there is none."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        message = {"role": "user", "content": text}
        answer = show(self.talker.chat([*system, *self.history, message]))
        self.history += [message, {"role": "assistant", "content": answer}]

    def _take(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word in self.commands:
            self.commands[word](rest.strip())
        elif word.startswith("/"):
            say(f"there is no {word}; /help shows the commands")
        else:
            try:
                self.ask(line)
            except QuireError as error:
                self.num_failed += 1
                say(f"error: {error}")

    def _reset(self, _: str) -> None:
        self.history.clear()
        say("the conversation is forgotten")

    def _set_system(self, text: str) -> None:
        self.system = text or None
        self._reset("")
