"""`quire chat`: talk to a chat model; answers stream, and the conversation is kept."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from quire.api.errors import QuireError, TokenizerError
from quire.api.request import SamplingParams
from quire.cli.flags import sampling_params
from quire.cli.session import add_session_flags, has_chat_template, open_llm

if TYPE_CHECKING:
    from quire.engine.llm import LLM

HELP = """\
/reset           forget the conversation
/system TEXT     forget it and set the system message (without TEXT: drop it)
/help            show this
/exit            leave (so does end of input)
Ctrl-C stops an answer, and leaves when there is none."""

REPLACEMENT = "\ufffd"


class ChatCommand:
    """An interactive conversation; from a pipe, one line is one message."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The system message, and the engine's flags."""
        parser.add_argument("--system", metavar="TEXT", help="a system message")
        add_session_flags(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Converse until the end of the input."""
        with open_llm(args) as llm:
            if not has_chat_template(llm):
                raise TokenizerError(
                    f"model {llm.config.model.model!r} has no chat template: give --chat-template FILE, "
                    f"or use `quire generate`"
                )
            Conversation(llm, sampling_params(args), args.system).run()
        return 0


class Conversation:
    """A conversation and its loop: read a line, obey it or answer it."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None = None) -> None:
        self.llm = llm
        self.params = params
        self.system = system
        self.history: list[dict[str, str]] = []
        self.commands: dict[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/system": self._set_system,
            "/help": lambda _: _say(HELP),
        }

    def run(self) -> None:
        """Until /exit, the end of the input, or Ctrl-C at the prompt."""
        is_interactive = sys.stdin.isatty()
        if is_interactive:
            _say(f"{self.llm.config.model.model}: /help shows the commands")
        while True:
            line = _read_line(is_interactive)
            if line is None or line.split(" ")[0] in ("/exit", "/quit"):
                return
            if line:
                self._take(line)

    def _take(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word in self.commands:
            self.commands[word](rest.strip())
        elif word.startswith("/"):
            _say(f"there is no {word}; /help shows the commands")
        else:
            self._answer(line)

    def _answer(self, text: str) -> None:
        self.history.append({"role": "user", "content": text})
        try:
            answer = self._stream()
        except QuireError as error:
            self.history.pop()
            _say(f"error: {error}")
            return
        self.history.append({"role": "assistant", "content": answer})

    def _stream(self) -> str:
        """Print the answer as it grows; Ctrl-C stops it and keeps what was said."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        prompt = self.llm.chat_prompt([*system, *self.history])
        stream = self.llm.stream(prompt, self.params)
        shown = ""
        error: Exception | None = None
        try:
            for output in stream:
                text = output.outputs[0].text
                error = output.error
                # A character that is not complete yet shows as a replacement; wait for the rest.
                if text.startswith(shown) and (output.finished or not text.endswith(REPLACEMENT)):
                    print(text[len(shown) :], end="", flush=True)
                    shown = text
        except KeyboardInterrupt:
            _say(" (stopped)")
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()
        print(flush=True)
        if error is not None:
            _say(f"error: {error}")
        return shown

    def _reset(self, _: str) -> None:
        self.history.clear()
        _say("the conversation is forgotten")

    def _set_system(self, text: str) -> None:
        self.system = text or None
        self._reset("")


def _read_line(is_interactive: bool) -> str | None:
    """The next line, None at the end of the input or on Ctrl-C."""
    try:
        if is_interactive:
            return input("> ").strip()
        line = sys.stdin.readline()
    except (EOFError, KeyboardInterrupt):
        _say("")
        return None
    return line.strip() if line else None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
