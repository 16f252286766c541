"""A plugin's parser that fails, behind the endpoints: its request alone fails, by its name, without its text."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from types import ModuleType

import pytest
from fake_engine import FakeEngine
from serving_app import create_app, state_of
from starlette.testclient import TestClient

from quire.api.hookspecs import hookimpl
from quire.api.serving import ParsedText, ParserContext
from quire.api.specs import PluginInfo, ReasoningParserSpec, ToolParserSpec
from quire.plugins import PluginHost
from quire.plugins.server_parts import server_extensions

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


class Touchy:
    """Raises at the word "boom"."""

    def __init__(self, context: ParserContext) -> None:
        pass

    def push(self, text: str) -> ParsedText:
        if "boom" in text:
            raise RuntimeError("secret of the plugin")
        return ParsedText(text)

    def flush(self) -> ParsedText:
        return ParsedText()


def client_of(kind: str, pieces: list[str]) -> TestClient:
    plugin = ModuleType("touchy")
    for name, answer in (
        ("plugin_info", PluginInfo(api=">=1.3,<2", affects_outputs=False)),
        ("register_tool_parsers", [ToolParserSpec("touchy", Touchy)]),
        ("register_reasoning_parsers", [ReasoningParserSpec("touchy", Touchy)]),
    ):
        setattr(plugin, f"quire_{name}", hookimpl(lambda answer=answer: answer))
    extensions = server_extensions(PluginHost.discover(extra_plugins=[plugin]))
    state = state_of(FakeEngine(pieces), **{f"{kind}_parser": "touchy"})
    state = replace(state, extensions=extensions)
    return TestClient(create_app(state), raise_server_exceptions=False)


@pytest.mark.parametrize("kind", ["tool_call", "reasoning"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_the_request_fails_by_the_plugins_name(
    kind: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("quire").propagate = logging.getLogger("quire.plugins").propagate = True
    is_chat = "chat" in path
    body: dict[str, object] = {"model": "fake"}
    body |= {"messages": [{"role": "user", "content": "x"}]} if is_chat else {"input": "x"}
    if kind == "tool_call":
        body["tools"] = TOOLS if is_chat else [{"type": "function", "name": "f", "parameters": {}}]
    client = client_of(kind, ["fine ", "boom"])
    answer = client.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (500, "plugin_failed")
    assert error["message"] == "the plugin 'touchy' failed on this request"
    assert "secret of the plugin" in caplog.text
    stream = client.post(path, json={**body, "stream": True})
    assert (
        stream.status_code == 200 and "fine " in stream.text and "the plugin 'touchy' failed" in stream.text
    )
    assert "secret" not in answer.text + stream.text
    fine = client_of(kind, ["all ", "well"]).post(path, json=body)
    assert fine.status_code == 200 and "all well" in json.dumps(fine.json())
