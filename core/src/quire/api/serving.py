"""What plugins implement for the server: parsers of generated text, and routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from quire.api.client import ChatTokenizer, EngineClient
from quire.api.outputs import Metric


@dataclass(slots=True, frozen=True)
class ToolCallDelta:
    """A part of a tool call.

    Attributes:
        index: which call of the answer, from 0.
        name: with the call's first part, else None.
        arguments: what is new of its arguments, JSON text.
    """

    index: int
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class ParsedText:
    """What a parser made of a piece of text; pieces add up.

    Attributes:
        content: for the user. reasoning: what a reasoning model thought before.
    """

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)


class TextParser(Protocol):
    """Splits the text of one choice while it is generated. One object a choice; linear in the text."""

    def push(self, text: str) -> ParsedText:
        """What a new piece of text gives; what may still turn out otherwise is held back."""
        ...

    def flush(self) -> ParsedText:
        """What was held back, at the end of the text; malformed calls become content."""
        ...


@dataclass(slots=True, frozen=True)
class ParserContext:
    """What the factory of a tool or reasoning parser is given, once a choice.

    Attributes:
        tools: the request's tools as OpenAI spells them; empty for reasoning parsers.
        tokenizer: the model's, None without one.
        options: the plugin's validated options, or None.
    """

    tools: Sequence[Mapping[str, object]] = ()
    tokenizer: ChatTokenizer | None = None
    options: object = None


ParserFactory = Callable[[ParserContext], TextParser]


@dataclass(slots=True, frozen=True)
class RouteContext:
    """What a route's factory is given, once, when the server starts.

    Attributes:
        client: the engine.
        options: the plugin's validated options, or None.
    """

    client: EngineClient
    options: object = None


@dataclass(slots=True, frozen=True)
class PluginRoute:
    """A route that a plugin brings: `/plugins/{plugin}{path}`, behind the server's authentication.

    Attributes:
        factory: called with a RouteContext, gives an ASGI application (scope, receive, send), or a
            handler: a function of a Starlette request that gives a Starlette response. A handler that is
            no coroutine function runs in a thread.
    """

    plugin: str
    path: str
    methods: tuple[str, ...]
    factory: Callable[[RouteContext], object]
    options: object = None


@dataclass(slots=True, frozen=True)
class PluginSummary:
    """An installed plugin, for the operator's page.

    Attributes:
        reason: why it is off; "" when it is on.
    """

    name: str
    distribution: str
    version: str
    description: str
    is_enabled: bool
    reason: str = ""


@dataclass(slots=True, frozen=True)
class ServerExtensions:
    """What the enabled plugins bring for a server.

    Attributes:
        tool_parsers, reasoning_parsers: each call is counted and timed; what fails raises
            ExtensionError. The options of contexts are filled in.
        watch: with the names of a plugin and of what is called, counts and times a block that runs its code.
        metrics: of these calls; for the thread that makes them.
    """

    routes: tuple[PluginRoute, ...] = ()
    tool_parsers: Mapping[str, ParserFactory] = field(default_factory=dict)
    reasoning_parsers: Mapping[str, ParserFactory] = field(default_factory=dict)
    plugins: tuple[PluginSummary, ...] = ()
    watch: Callable[[str, str], AbstractContextManager[None]] = lambda plugin, point: nullcontext()
    metrics: Callable[[], Sequence[Metric]] = list
