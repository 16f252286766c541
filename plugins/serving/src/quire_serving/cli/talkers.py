"""Who answers in `chat` and `complete`: a server, or a model in this process."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast

from quire.api.commands import CommandTools
from quire.api.errors import ConfigError, StepError, TokenizerError
from quire.api.request import SamplingParams
from quire_serving.cli.remote import Server, add_server_flags, address_of

if TYPE_CHECKING:
    from quire import LLM
    from quire.api.outputs import RequestOutput

REPLACEMENT = "\ufffd"

Message = Mapping[str, str]


class Talker(Protocol):
    """Answers, in pieces of text that add up."""

    @property
    def name(self) -> str:
        """The model's, for people."""
        ...

    def chat(self, messages: Sequence[Message]) -> Generator[str, None, None]:
        """The answer to a conversation; closing the generator stops it. Raises QuireError."""
        ...

    def complete(self, prompt: str) -> Generator[str, None, None]:
        """How a text goes on; as `chat`."""
        ...


class RemoteTalker:
    """A server."""

    def __init__(self, server: Server, sampling: Mapping[str, object]) -> None:
        self._server = server
        self._sampling = sampling

    @property
    def name(self) -> str:
        """See Talker."""
        return self._server.model

    def chat(self, messages: Sequence[Message]) -> Generator[str, None, None]:
        """See Talker."""
        body = {**self._sampling, "messages": list(messages)}
        for choice in _choices(self._server.stream("/chat/completions", body)):
            yield choice.get("delta", {}).get("content") or ""

    def complete(self, prompt: str) -> Generator[str, None, None]:
        """See Talker."""
        for choice in _choices(self._server.stream("/completions", {**self._sampling, "prompt": prompt})):
            yield choice.get("text") or ""


class LocalTalker:
    """A model in this process."""

    def __init__(self, llm: LLM, params: SamplingParams) -> None:
        self.llm = llm
        self.params = params

    @property
    def name(self) -> str:
        """See Talker."""
        return str(self.llm.config.model.model)

    def chat(self, messages: Sequence[Message]) -> Generator[str, None, None]:
        """See Talker."""
        if self.llm.engine.chat_template is None and self.llm.get_tokenizer().chat_template is None:
            raise TokenizerError(
                f"model {self.name!r} has no chat template: give --chat-template FILE, or use `quire complete`"
            )
        yield from self._pieces(self.llm.stream(self.llm.chat_prompt(messages), self.params))

    def complete(self, prompt: str) -> Generator[str, None, None]:
        """See Talker."""
        yield from self._pieces(self.llm.stream(prompt, self.params))

    def _pieces(self, outputs: Iterator[RequestOutput]) -> Generator[str, None, None]:
        shown = ""
        try:
            for output in outputs:
                text = output.outputs[0].text
                # A character that is not complete yet shows as a replacement; wait for the rest.
                if text.startswith(shown) and (output.finished or not text.endswith(REPLACEMENT)):
                    yield text[len(shown) :]
                    shown = text
                if output.error is not None:
                    raise StepError(str(output.error)) from output.error
        finally:
            cast("Generator[RequestOutput, None, None]", outputs).close()


def add_talker_flags(parser: argparse.ArgumentParser, tools: CommandTools) -> None:
    """Declare the server's flags, those of sampling, and the engine's."""
    parser.add_argument(
        "--quiet", action="store_true", help="say nothing on standard error but warnings and errors"
    )
    add_server_flags(parser)
    tools.add_sampling_flags(parser)
    tools.add_engine_flags(parser)


@contextmanager
def open_talker(args: argparse.Namespace, tools: CommandTools) -> Iterator[Talker]:
    """A model in this process where a flag of the engine (or --config) was given, else the server.

    Raises:
        QuireError: a flag or the model is refused; flags are checked before torch is imported.
    """
    sampling = tools.sampling_keywords(args)
    keywords: dict[str, Any] = tools.engine_keywords(args)
    if not keywords.keys() - {"plugins"} and args.config is None:
        with Server(address_of(args)) as server:
            yield RemoteTalker(server, sampling)
        return
    if args.url is not None:
        raise ConfigError("--url talks to a server, flags of the engine run a model here: give one of them")
    config = tools.engine_config(args)
    if args.quiet:
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
    from quire import LLM

    keywords["model"] = config.model.model
    params = SamplingParams(**cast(dict[str, Any], sampling))
    with LLM(config_file=args.config, **keywords) as llm:
        yield LocalTalker(llm, params)


def _choices(events: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for event in events:
        for choice in event.get("choices") or ():
            if choice.get("index", 0) == 0:
                yield choice
