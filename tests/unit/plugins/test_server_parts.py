"""What a server gets of plugins: parsers with their options, timed, whose failures name the plugin."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from quire.api.errors import ExtensionError
from quire.api.serving import ParsedText, ParserContext, ServerExtensions, ToolCallDelta
from quire.api.specs import ReasoningParserSpec, RouteSpec, ToolParserSpec
from quire.plugins import PluginHost
from quire.plugins.server_parts import server_extensions

Plugin = Callable[..., ModuleType]
HostOf = Callable[..., PluginHost]


class Echo:
    """Gives back the text; `answer` is given instead, or raised."""

    answer: Any = None

    def __init__(self, context: ParserContext) -> None:
        self.context = context

    def push(self, text: str) -> ParsedText:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer if self.answer is not None else ParsedText(text)

    def flush(self) -> ParsedText:
        return self.push("")


def extensions_of(plugin: Plugin, host_of: HostOf, tool: Any, reasoning: Any = Echo) -> ServerExtensions:
    mine = plugin(
        "mine",
        register_tool_parsers=lambda: [ToolParserSpec("echo", tool)],
        register_reasoning_parsers=lambda: [ReasoningParserSpec("think", reasoning)],
        register_routes=lambda: [RouteSpec("/x", lambda context: None, ("GET",))],
    )
    return server_extensions(host_of(mine))


def figures(extensions: ServerExtensions) -> dict[tuple[str, str], float]:
    return {(each.name, each.labels["point"]): each.value for each in extensions.metrics()}


def test_parsers_are_named_timed_and_know_the_request(plugin: Plugin, host_of: HostOf) -> None:
    made: list[Echo] = []

    def factory(context: ParserContext) -> Echo:
        made.append(Echo(context))
        return made[-1]

    extensions = extensions_of(plugin, host_of, factory)
    assert {"echo"} <= set(extensions.tool_parsers) and {"think"} <= set(extensions.reasoning_parsers)
    [route] = [route for route in extensions.routes if route.plugin == "mine"]
    assert (route.path, route.methods) == ("/x", ("GET",))
    parser = extensions.tool_parsers["echo"](ParserContext(({"type": "function"},)))
    assert made[0].context.tools == ({"type": "function"},)
    assert (parser.push("a"), parser.push("b"), parser.flush()) == (*map(ParsedText, "ab"), ParsedText())
    counted = figures(extensions)
    assert counted["quire:plugin_calls", "TextParser.push"] == 2
    assert counted["quire:plugin_calls", "TextParser.flush"] == 1
    assert counted["quire:plugin_calls", "ToolParserSpec.factory"] == 1
    assert counted["quire:plugin_errors", "TextParser.push"] == 0
    with extensions.watch("mine", "route /x"):
        pass
    assert figures(extensions)["quire:plugin_calls", "route /x"] == 1


@pytest.mark.parametrize(
    "answer",
    [
        RuntimeError("secret"),
        SystemExit(1),
        "a text",
        ParsedText(content=3),  # type: ignore[arg-type]  # wrong on purpose
        ParsedText(reasoning=b"x"),  # type: ignore[arg-type]  # wrong on purpose
        ParsedText(tool_calls=["call"]),  # type: ignore[list-item]  # wrong on purpose
        ParsedText(tool_calls=None),  # type: ignore[arg-type]  # wrong on purpose
    ],
)
def test_what_a_parser_does_wrong_is_an_error_of_its_plugin(
    plugin: Plugin, host_of: HostOf, answer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Echo, "answer", answer)
    extensions = extensions_of(plugin, host_of, Echo)
    for name, parsers in (("echo", extensions.tool_parsers), ("think", extensions.reasoning_parsers)):
        parser = parsers[name](ParserContext())
        for call in (lambda parser=parser: parser.push("x"), parser.flush):
            with pytest.raises(ExtensionError, match="plugin 'mine'") as caught:
                call()
            assert caught.value.plugin == "mine" and "secret" not in str(caught.value)
    assert figures(extensions)["quire:plugin_errors", "TextParser.push"] == 2


def test_calls_in_parts_are_allowed(plugin: Plugin, host_of: HostOf, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ParsedText(tool_calls=[ToolCallDelta(0, "f", "{"), ToolCallDelta(0, None, "}")])
    monkeypatch.setattr(Echo, "answer", answer)
    assert extensions_of(plugin, host_of, Echo).tool_parsers["echo"](ParserContext()).push("x") is answer


def test_a_factory_that_fails_fails_the_request(plugin: Plugin, host_of: HostOf) -> None:
    def factory(context: ParserContext) -> Echo:
        raise RuntimeError("secret")

    extensions = extensions_of(plugin, host_of, factory)
    with pytest.raises(ExtensionError) as caught:
        extensions.tool_parsers["echo"](ParserContext())
    assert caught.value.plugin == "mine"
    assert figures(extensions)["quire:plugin_errors", "ToolParserSpec.factory"] == 1
