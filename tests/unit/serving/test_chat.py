"""/v1/chat/completions over a fake engine: OpenAI's shapes, tools, reasoning, templates, refusals."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from fake_engine import FakeEngine, FakeTokenizer
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from serving_app import FakeServer

from quire.api.serving import ParsedText, ParserContext, ToolCallDelta

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


class CallParser:
    """Text after "!" is the arguments of a call of `add`; "?" ends thoughts, for the reasoning parser."""

    def __init__(self, context: ParserContext) -> None:
        assert [tool["function"]["name"] for tool in context.tools] == ["add"]  # type: ignore[index]  # JSON
        self.has_begun = False

    def push(self, text: str) -> ParsedText:
        content, mark, arguments = ("", "", text) if self.has_begun else text.partition("!")
        name = "add" if mark else None
        self.has_begun = self.has_begun or bool(mark)
        return ParsedText(content, "", [ToolCallDelta(0, name, arguments)] if self.has_begun else [])

    def flush(self) -> ParsedText:
        return ParsedText()


class ThoughtParser:
    def __init__(self, context: ParserContext) -> None:
        self.is_open = True

    def push(self, text: str) -> ParsedText:
        thought, mark, content = text.partition("?") if self.is_open else ("", "", text)
        self.is_open = self.is_open and not mark
        return ParsedText(content, thought)

    def flush(self) -> ParsedText:
        return ParsedText("")


def parsing(pieces: list[str]) -> FakeServer:
    return FakeServer.of(
        FakeEngine(pieces),
        tool_parsers={"calls": CallParser},
        reasoning_parsers={"thoughts": ThoughtParser},
        tool_call_parser="calls",
        reasoning_parser="thoughts",
    )


def test_a_conversation_gets_openais_object() -> None:
    server = FakeServer.of()
    body = server.ok(PATH, model="fake", n=2, messages=[{"role": "system", "content": "s"}, *HI])
    answer = ChatCompletion.model_validate(body)
    assert [choice.message.content for choice in answer.choices] == ["Hello world"] * 2
    assert answer.choices[1].index == 1 and answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.usage is not None and answer.usage.completion_tokens == 4
    (request,) = server.engine.requests
    assert request.text == "<system>s<user>hi<assistant>" and request.params.max_tokens is None


def test_a_stream_begins_with_roles_and_ends_with_usage() -> None:
    server = FakeServer.of()
    events = server.events(PATH, messages=HI, n=2, stream_options={"include_usage": True})
    assert events[-1] == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate(event) for event in events[:-1]]
    assert [chunk.choices[0].delta.role for chunk in chunks[:3]] == ["assistant", "assistant", None]
    texts = ["", ""]
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert chunk.usage is None and chunk.object == "chat.completion.chunk"
    assert texts == ["Hello world"] * 2
    assert [chunk.choices[0].finish_reason for chunk in chunks[-3:-1]] == ["stop"] * 2
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4


def test_logprobs_have_tokens_bytes_and_the_likeliest() -> None:
    server = FakeServer.of(FakeEngine(["é", "x"]))
    body = server.ok(PATH, messages=HI, logprobs=True, top_logprobs=2)
    logprobs = ChatCompletion.model_validate(body).choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    first = logprobs.content[0]
    assert (first.token, first.bytes, first.logprob) == ("é", [195, 169], -0.25)
    assert [top.token for top in first.top_logprobs] == ["é", "a"]
    events = server.events(PATH, messages=HI, logprobs=True)
    streamed = [entry for event in events[1:-1] for entry in event["choices"][0]["logprobs"]["content"]]
    assert [entry["token"] for entry in streamed] == ["é", "x"]
    assert streamed[0]["top_logprobs"] == []


def test_reasoning_and_calls_are_split_off() -> None:
    server = parsing(["think", "ing?", "text!", '{"a":', "1}"])
    body = server.ok(PATH, messages=HI, tools=TOOLS)
    choice = ChatCompletion.model_validate(body).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "text"
    assert body["choices"][0]["message"]["reasoning_content"] == "thinking"
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function" and call.id.startswith("call_")
    assert (call.function.name, call.function.arguments) == ("add", '{"a":1}')
    assert server.engine.tokenizer is not None
    assert server.engine.tokenizer.rendered[0]["tools"] == TOOLS


def test_a_stream_of_a_call_tells_its_name_once() -> None:
    server = parsing(["hm?", "!", '{"a":', "1}"])
    deltas = [event["choices"][0]["delta"] for event in server.events(PATH, messages=HI, tools=TOOLS)[:-1]]
    assert deltas[1] == {"reasoning_content": "hm", "reasoning": "hm"}
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert calls[0]["type"] == "function" and calls[0]["function"] == {"name": "add", "arguments": ""}
    assert [call["function"]["arguments"] for call in calls] == ["", '{"a":', "1}"]
    assert all("id" not in call for call in calls[1:])


def test_a_chunk_of_a_stream_tells_of_one_call_at_most() -> None:
    class TwoCallsParser(CallParser):
        """Two calls in the first text, none after."""

        def push(self, text: str) -> ParsedText:
            calls = [
                ToolCallDelta(0, "add", "{}"),
                ToolCallDelta(1, "add", text),
                ToolCallDelta(1, None, "}"),
            ]
            return ParsedText("both", "", calls)

    server = FakeServer.of(
        FakeEngine(["{"]), tool_parsers={"calls": TwoCallsParser}, tool_call_parser="calls"
    )
    choices = [
        event["choices"][0] for event in server.events(PATH, messages=HI, tools=TOOLS, logprobs=True)[1:-1]
    ]
    told = [[call["index"] for call in choice["delta"]["tool_calls"]] for choice in choices]
    assert told == [[0], [1, 1]]
    assert [choice["delta"].get("content") for choice in choices] == ["both", None]
    assert [choice["finish_reason"] for choice in choices] == [None, "tool_calls"]
    assert choices[0]["logprobs"] is None and choices[1]["logprobs"] is not None


def test_without_calls_in_mind_text_stays_and_tools_are_not_rendered() -> None:
    server = parsing(["a?b!c"])
    body = server.ok(PATH, messages=HI, tools=TOOLS, tool_choice="none")
    assert body["choices"][0]["message"]["content"] == "b!c"
    assert server.engine.tokenizer is not None and "tools" not in server.engine.tokenizer.rendered[0]


def test_tools_may_be_rendered_only() -> None:
    server = FakeServer.of(enable_auto_tool_choice=False)
    assert server.ok(PATH, messages=HI, tools=TOOLS)["choices"][0]["finish_reason"] == "stop"
    assert server.engine.tokenizer is not None and server.engine.tokenizer.rendered[0]["tools"] == TOOLS


def test_messages_are_plain_for_the_template() -> None:
    server = FakeServer.of()
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
        {"role": "user", "content": "q", "name": "me"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c"},
    ]
    server.ok(
        PATH, messages=messages, chat_template_kwargs={"enable_thinking": False}, store=True, metadata={}
    )
    assert server.engine.tokenizer is not None
    (rendered,) = server.engine.tokenizer.rendered
    assert rendered["enable_thinking"] is False
    plain: Any = rendered["messages"]
    first, second, third, fourth = plain
    assert first == {"role": "system", "content": "x\ny"}
    assert second == {"role": "user", "content": "q", "name": "me"}
    assert third["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}
    assert fourth == {"role": "tool", "content": "2", "tool_call_id": "c"}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format_unsupported", "response_format"),
        ({"tools": TOOLS}, "tool_parser_missing", "tools"),
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice_unsupported", "tool_choice"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "add"}}},
            "tool_choice_unsupported",
            "tool_choice",
        ),
        ({"chat_template": "x"}, "chat_template_refused", "chat_template"),
        ({"chat_template_kwargs": {"messages": []}}, "conflicting_parameters", "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a b": 1}}, "invalid_request", "chat_template_kwargs"),
        ({"top_logprobs": 1}, "conflicting_parameters", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "invalid_sampling_params", "top_logprobs"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "conflicting_parameters",
            "continue_final_message",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "content_type_unsupported",
            "messages",
        ),
        ({"messages": [{"role": "user"}]}, "conflicting_parameters", "messages"),
        ({"tools": [{**TOOLS[0], "function": {"name": "x", "description": "y" * 2**16}}],
          "tool_choice": "auto"}, "tools_too_large", "tools"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused_by_name(fields: dict[str, Any], code: str, param: str) -> None:
    assert FakeServer.of().refused(PATH, **{"messages": HI, **fields}) == (400, code, param)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"max_completion_tokens": 0},
        {"function": []},
    ],
)
def test_malformed_requests_are_400(fields: dict[str, Any]) -> None:
    assert FakeServer.of().refused(PATH, **{"messages": HI, **fields})[0] == 400


def test_tools_are_bounded() -> None:
    tool = {"type": "function", "function": {"name": "x", "description": "y" * 2**16}}
    server = FakeServer.of(enable_auto_tool_choice=False)
    assert server.refused(PATH, messages=HI, tools=[tool]) == (400, "tools_too_large", "tools")


def test_a_model_without_a_template_says_how_to_get_one() -> None:
    engine = FakeEngine()
    engine.tokenizer = FakeTokenizer(chat_template=None)
    assert FakeServer.of(engine).refused(PATH, messages=HI)[1] == "chat_template_missing"
    engine.tokenizer = None
    assert FakeServer.of(engine).refused(PATH, messages=HI)[1] == "tokenizer_unavailable"


def test_a_slow_template_is_given_up() -> None:
    is_over = threading.Event()

    class Slow(FakeTokenizer):
        def apply_chat_template(self, *args: Any, **values: Any) -> str:
            is_over.wait(10)
            return ""

    engine = FakeEngine()
    engine.tokenizer = Slow()
    server = FakeServer.of(engine, template_timeout_s=0.05)
    began = time.monotonic()
    assert server.refused(PATH, messages=HI) == (400, "template_timeout", "messages")
    assert time.monotonic() - began < 5
    is_over.set()


def test_what_other_servers_add_to_messages_is_passed_over() -> None:
    server = FakeServer.of()
    messages = [
        {"role": "user", "content": "hi", "type": "text"},
        {"role": "assistant", "content": "hey", "parsed": None, "provider_specific_fields": {"a": 1}},
        {"role": "user", "content": "go on"},
    ]
    assert server.ok(PATH, messages=messages, max_tokens=1)["choices"]


def test_a_template_gets_no_name_of_its_caller() -> None:
    server = FakeServer.of()
    for name in ("self", "messages", "tokenize"):
        status, code, param = server.refused(PATH, messages=HI, chat_template_kwargs={name: 1})
        assert (status, code, param) == (400, "conflicting_parameters", "chat_template_kwargs")
