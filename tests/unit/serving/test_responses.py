"""/v1/responses over a fake engine: objects, events, tools, reasoning, refusals; and the real client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from fake_engine import FakeEngine, Script, deltas_of
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from serving_app import create_app, state_of
from starlette.testclient import TestClient

from quire.api.errors import StepError
from quire_serving.parsers import reasoning, tools

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}}
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
TEXT_EVENTS = [
    "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    "response.output_text.delta", "response.output_text.delta", "response.output_text.done",
    "response.content_part.done", "response.output_item.done", "response.completed",
]  # fmt: skip


@dataclass
class Server:
    engine: FakeEngine
    client: TestClient

    def ask(self, **fields: object) -> Any:
        body = json.dumps({"input": "Hi", **fields})  # json= cannot send half of a surrogate pair
        return self.client.post("/v1/responses", content=body, headers={"Content-Type": "application/json"})

    def events(self, **fields: object) -> list[dict[str, Any]]:
        text = self.ask(stream=True, **fields).text
        found = [
            dict(line.split(": ", 1) for line in each.split("\n")) for each in text.strip().split("\n\n")
        ]
        decoded = [json.loads(each["data"]) for each in found]
        assert [each["event"] for each in found] == [each["type"] for each in decoded]
        assert [each["sequence_number"] for each in decoded] == list(range(len(decoded)))
        for each in decoded:
            EVENT.validate_python(each)
        return decoded


def serve(script: Script | Sequence[str] = ("Hello", " world"), **settings: Any) -> Server:
    engine = FakeEngine(script)
    state = state_of(engine, {"hermes": tools.hermes}, {"qwen3": reasoning.qwen3}, **settings)
    return Server(engine, TestClient(create_app(state)))


def test_a_response() -> None:
    server = serve()
    body = server.ask(model="fake", instructions="Be short.", metadata={"a": "b"}, max_output_tokens=9).json()
    found = Response.model_validate(body, strict=True)
    assert (found.status, found.output_text, found.error) == ("completed", "Hello world", None)
    assert found.usage is not None
    assert found.usage.input_tokens == len(server.engine.requests[0].token_ids)
    assert (found.usage.output_tokens, found.usage.input_tokens_details.cached_tokens) == (2, 2)
    assert found.output[0].status == "completed"  # type: ignore[union-attr]  # a message
    assert server.engine.requests[0].text == "<system>Be short.<user>Hi<assistant>"
    assert server.engine.requests[0].params.max_tokens == 9


def test_the_events_of_a_text() -> None:
    events = serve().events()
    assert [each["type"] for each in events] == TEXT_EVENTS
    assert "".join(each["delta"] for each in events if "delta" in each) == "Hello world"
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "Hello world"
    assert events[0]["response"]["status"] == events[1]["response"]["status"] == "in_progress"
    assert {each["item_id"] for each in events if "item_id" in each} == {events[2]["item"]["id"]}


def test_an_answer_that_is_cut_is_incomplete() -> None:
    server = serve(lambda request: deltas_of(request, ["a"], "length"))
    body = server.ask().json()
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert server.events()[-1]["type"] == "response.incomplete"


def test_an_answer_without_text_is_an_empty_message() -> None:
    server = serve(())
    assert Response.model_validate(server.ask().json()).output_text == ""
    assert [each["type"] for each in server.events()] == [
        each for each in TEXT_EVENTS if not each.endswith("text.delta")
    ]


def test_items_of_a_conversation() -> None:
    server = serve(tool_call_parser="hermes")
    first = [
        {"role": "developer", "content": "D"},
        {"role": "user", "content": [{"type": "input_text", "text": "U"}]},
    ]
    answer = {
        "type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
        "content": [{"type": "output_text", "text": "A", "annotations": [], "logprobs": []}],
    }  # fmt: skip
    calls = [
        {"type": "function_call", "call_id": str(place), "name": "add", "arguments": '{"a": 1}'}
        for place in range(2)
    ]
    outputs = [{"type": "function_call_output", "call_id": str(place), "output": "7"} for place in range(2)]
    thought = {"type": "reasoning", "id": "rs_1", "summary": []}
    reply = server.ask(input=[*first, thought, answer, *calls, *outputs], tools=[TOOL])
    assert reply.status_code == 200, reply.text
    assert (
        server.engine.requests[0].text == "<system>D<user>U<assistant>A<assistant><tool>7<tool>7<assistant>"
    )
    rendered: Any = server.engine.tokenizer.rendered[0]  # type: ignore[union-attr]  # it has one
    assert [call["function"]["arguments"] for call in rendered["messages"][3]["tool_calls"]] == [{"a": 1}] * 2
    assert rendered["tools"][0]["function"]["name"] == "add"


def test_tool_calls_are_items() -> None:
    server = serve(("Well. ", *CALL, *CALL), tool_call_parser="hermes")
    found = Response.model_validate(server.ask(tools=[TOOL]).json())
    assert [item.type for item in found.output] == ["message", "function_call", "function_call"]
    assert [(item.name, item.arguments) for item in found.output[1:]] == [("add", '{"a": 1}')] * 2  # type: ignore[union-attr]  # calls
    assert len({item.call_id for item in found.output[1:]}) == 2  # type: ignore[union-attr]  # calls
    events = server.events(tools=[TOOL])
    assert sum(each["type"] == "response.function_call_arguments.done" for each in events) == 2
    assert events[-1]["response"]["output"][1]["name"] == "add"
    alone = server.ask(tools=[TOOL], parallel_tool_calls=False).json()["output"]
    assert [item["type"] for item in alone] == ["message", "function_call"]
    assert (
        "tool_call" in server.ask(tools=[TOOL], tool_choice="none").json()["output"][0]["content"][0]["text"]
    )


def test_reasoning_is_an_item() -> None:
    pieces = ("<think>", "Hm", ".", "</think>", "\n\n", "Yes", *CALL)
    server = serve(pieces, reasoning_parser="qwen3", tool_call_parser="hermes")
    found = Response.model_validate(server.ask(tools=[TOOL]).json())
    assert [item.type for item in found.output] == ["reasoning", "message", "function_call"]
    assert found.output[0].content[0].text == "Hm."  # type: ignore[union-attr,index]  # reasoning
    assert found.output_text == "Yes"
    assert found.usage is not None
    assert found.usage.output_tokens_details.reasoning_tokens == 3
    assert [each["delta"] for each in server.events() if "reasoning_text.delta" in each["type"]] == [
        "Hm",
        ".",
    ]


def test_a_failure_in_mid_stream_is_an_event() -> None:
    server = serve(lambda request: [deltas_of(request, ["a", "b"])[0], StepError("secret")])
    last = server.events()[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert "secret" not in json.dumps(last)
    assert server.ask().status_code == 500


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"format": {"type": "json_object"}}}, "text"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"n": 2}, "n"),
        ({"n": {}}, "n"),
        ({"tool_choice": "required", "tools": [TOOL]}, "tool_choice"),
        ({"tools": [TOOL]}, "tools"),
        ({"stream_options": {}}, "stream_options"),
    ],
)
def test_what_is_not_served_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    server = serve()
    reply = server.ask(**fields)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert not server.engine.requests


def test_what_asks_for_nothing_is_taken() -> None:
    fields: dict[str, object] = {
        "previous_response_id": None, "background": False, "truncation": "disabled", "store": True, "n": 1,
        "text": {"format": {"type": "text"}}, "include": [], "tool_choice": "auto", "tools": [],
    }  # fmt: skip
    reply = serve().ask(**fields)
    assert reply.status_code == 200, reply.text
    assert reply.json()["store"] is False


@pytest.mark.parametrize(
    "fields",
    [
        {"input": []}, {"input": [{"type": "image", "url": "x"}]}, {"input": [7]}, {"input": None}, {"other": 1},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        {"max_output_tokens": 0}, {"tools": [{"type": "web_search"}]},
        {"metadata": {"a": "\ud800"}}, {"tools": [{**TOOL, "parameters": {"maximum": 2**64}}]},
        {"metadata": {"a": 1}}, {"input": [{"type": "reasoning"}]},
        {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}] * 129},
    ],
)  # fmt: skip
def test_malformed_requests_are_refused(fields: dict[str, object]) -> None:
    assert serve().ask(**fields).status_code == 400


def test_unknown_models_and_bad_arguments_are_refused() -> None:
    assert serve().ask(model="other").status_code == 404
    call = {"type": "function_call", "call_id": "1", "name": "add", "arguments": "[1]"}
    assert serve().ask(input=[call]).status_code == 400


def test_embeddings_are_refused() -> None:
    reply = serve().client.post("/v1/embeddings", json={"input": "x"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "embeddings_unsupported")


async def use_the_client(client: AsyncOpenAI) -> None:
    tool: Any = TOOL
    found = await client.responses.create(model="fake", input="Hi", tools=[tool])
    assert found.output_text == "Well. "
    assert [item.type for item in found.output] == ["reasoning", "message", "function_call"]
    turns: Any = [{"role": "user", "content": "Hi"}, *found.output]
    turns.append({"type": "function_call_output", "call_id": found.output[-1].call_id, "output": "2"})  # type: ignore[union-attr]  # a call
    again = await client.responses.create(model="fake", input=turns, tools=[tool])
    assert again.status == "completed"
    async with client.responses.stream(model="fake", input="Hi", tools=[tool]) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert final.output_text == "Well. "
    assert final.output[-1].arguments == '{"a": 1}'  # type: ignore[union-attr]  # a call
    events = await client.responses.create(model="fake", input="Hi", stream=True, tools=[tool])
    assert [event.type async for event in events] == kinds
    with pytest.raises(BadRequestError, match="previous_response_id"):
        await client.responses.create(model="fake", input="Hi", previous_response_id="resp_1")
    with pytest.raises(NotFoundError, match="no embeddings"):
        await client.embeddings.create(model="fake", input="Hi")


def test_the_real_client() -> None:
    pieces = ("<think>", "Hm", "</think>", "Well. ", *CALL)
    app = serve(pieces, reasoning_parser="qwen3", tool_call_parser="hermes").client.app

    async def main() -> None:
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
        running = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0
        ) as client:
            await use_the_client(client)
        server.should_exit = True
        await running

    asyncio.run(main())
