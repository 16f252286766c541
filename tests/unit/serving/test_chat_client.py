"""Calls of tools through the real openai client: several at once, whole and as they stream."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from fake_engine import FakeEngine
from openai import AsyncOpenAI
from serving_app import create_app, state_of

from quire.api.serving import ParsedText, ParserContext, ToolCallDelta
from quire_serving.parsers import tools

CALLS = (
    '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    '<tool_call>{"name": "add", "arguments": {"a": 22}}</tool_call>'
)
PIECES = ("!", '{"a"', ": 1}", "!", '{"a"', ": 2", "2}")
ASKED: Any = {
    "model": "fake",
    "messages": [{"role": "user", "content": "Hi"}],
    "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
}


class PieceParser:
    """Each "!" begins a call of `add`, whose arguments come as the text does."""

    def __init__(self, context: ParserContext) -> None:
        self._index = -1

    def push(self, text: str) -> ParsedText:
        if text == "!":
            self._index += 1
            return ParsedText(tool_calls=[ToolCallDelta(self._index, "add")])
        return ParsedText(tool_calls=[ToolCallDelta(self._index, None, text)])

    def flush(self) -> ParsedText:
        return ParsedText()


def client_of(pieces: tuple[str, ...], parser: str) -> AsyncOpenAI:
    parsers = {"hermes": tools.hermes, "pieces": PieceParser}
    app = create_app(state_of(FakeEngine(pieces), parsers, tool_call_parser=parser))
    http_client: Any = httpx.AsyncClient(transport=httpx.ASGITransport(app=app))
    return AsyncOpenAI(base_url="http://server/v1", api_key="none", max_retries=0, http_client=http_client)


def test_parallel_calls() -> None:
    async def main() -> None:
        async with client_of(("Well. ", *CALLS), "hermes") as client:
            answer = await client.chat.completions.create(**ASKED)
            choice = answer.choices[0]
            assert (choice.finish_reason, (choice.message.content or "").strip()) == ("tool_calls", "Well.")
            found: Any = choice.message.tool_calls
            assert [(call.function.name, call.function.arguments) for call in found] == [
                ("add", '{"a": 1}'),
                ("add", '{"a": 22}'),
            ]
            assert len({call.id for call in found}) == 2
            alone = await client.chat.completions.create(**ASKED, parallel_tool_calls=False)
            assert len(alone.choices[0].message.tool_calls or ()) == 1

    asyncio.run(main())


def test_arguments_stream_in_pieces() -> None:
    async def main() -> None:
        async with client_of(PIECES, "pieces") as client:
            pieces: list[tuple[int, str]] = []
            async with client.chat.completions.stream(**ASKED) as stream:
                async for event in stream:
                    if event.type == "tool_calls.function.arguments.delta":
                        pieces.append((event.index, event.arguments_delta))
                final = await stream.get_final_completion()
            texts = ["".join(text for place, text in pieces if place == index) for index in range(2)]
            assert texts == ['{"a": 1}', '{"a": 22}'] and len(pieces) == 7
            assert final.choices[0].finish_reason == "tool_calls"
            found: Any = final.choices[0].message.tool_calls
            assert [call.function.arguments for call in found] == texts
            assert all(call.id.startswith("call_") for call in found)

    asyncio.run(main())
