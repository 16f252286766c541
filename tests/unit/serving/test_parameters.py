"""Every parameter of OpenAI's endpoints, and of vLLM's, is served, taken where it is harmless, or refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chat
from openai.types.responses import response_create_params as responses
from serving_app import FakeServer

from quire_serving.parsers import tools as tool_parsers

FORCED = {"type": "function", "function": {"name": "add"}}
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}}
CHAT_TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@dataclass(frozen=True)
class Row:
    """A value that is taken, and one that is refused with the field's name; `beside` makes them possible."""

    taken: object
    refused: object
    beside: dict[str, Any] = field(default_factory=dict)


SAMPLING = {
    "frequency_penalty": Row(1.5, 3),
    "logit_bias": Row({"5": 1}, {"x": 1}),
    "n": Row(2, 17),
    "presence_penalty": Row(-1.5, -3),
    "seed": Row(-5, 2**63),
    "stop": Row(["a", "b"], ["x"] * 17),
    "temperature": Row(0.5, 2.5),
    "top_p": Row(0.5, 0),
    "user": Row("me", 5),
    "stream": Row(True, "yes"),
    "stream_options": Row({"include_usage": True}, {"include_all": True}, {"stream": True}),
}
VLLM = {
    "allowed_token_ids": Row([], [5]),
    "bad_words": Row([], ["x"]),
    "cache_salt": Row("s", "a b"),
    "guided_json": Row(None, {"type": "object"}),
    "ignore_eos": Row(True, 1),
    "include_stop_str_in_output": Row(True, 1),
    "kv_transfer_params": Row(None, {"a": 1}),
    "length_penalty": Row(1.0, 1.5),
    "logits_processors": Row([], ["x"]),
    "min_p": Row(0.1, 2),
    "min_tokens": Row(1, -1),
    "priority": Row(5, 2**31),
    "repetition_penalty": Row(1.1, 0),
    "request_id": Row("mine", 5),
    "return_tokens_as_token_ids": Row(False, True),
    "skip_special_tokens": Row(False, 0),
    "spaces_between_special_tokens": Row(False, 0),
    "stop_token_ids": Row([5], [-5]),
    "structured_outputs": Row(None, {"regex": "a"}),
    "top_k": Row(-1, -2),
    "truncate_prompt_tokens": Row(None, 5),
    "use_beam_search": Row(False, True),
    "vllm_xargs": Row({"p": 1}, 5),
}
COMPLETIONS = {
    "best_of": Row(1, 3),
    "echo": Row(True, "yes"),
    "logprobs": Row(2, 21),
    "max_tokens": Row(5, -1),
    "model": Row("fake", 5),
    "prompt": Row([[1], [2]], {}),
    "suffix": Row("", "end"),
}
CHAT = {
    "audio": Row(None, {"voice": "a", "format": "wav"}),
    "function_call": Row("auto", {"name": "add"}),
    "functions": Row([], [{"name": "add"}]),
    "logprobs": Row(True, 5),
    "max_completion_tokens": Row(5, 0),
    "max_tokens": Row(5, 0),
    "messages": Row([{"role": "user", "content": "a"}], []),
    "metadata": Row({"a": "b"}, 5),
    "modalities": Row(["text"], ["text", "audio"]),
    "model": Row("fake", 5),
    "moderation": Row(None, {"model": "m"}),
    "parallel_tool_calls": Row(False, 0),
    "prediction": Row({"type": "content", "content": "a"}, 5),
    "prompt_cache_key": Row("a", 5),
    "prompt_cache_options": Row({"mode": "implicit"}, 5),
    "prompt_cache_retention": Row("24h", "1h"),
    "reasoning_effort": Row("low", 5),
    "response_format": Row({"type": "text"}, {"type": "json_object"}),
    "safety_identifier": Row("a", 5),
    "service_tier": Row("flex", 5),
    "store": Row(True, 1),
    "tool_choice": Row("none", FORCED, {"tools": [CHAT_TOOL]}),
    "tools": Row([CHAT_TOOL], [{"type": "custom"}]),
    "top_logprobs": Row(2, 21, {"logprobs": True}),
    "verbosity": Row("medium", "high"),
    "web_search_options": Row(None, {}),
}
RESPONSES = {
    "access_programs": Row(None, {"cyber": "standard"}),
    "background": Row(False, True),
    "context_management": Row([], [{"type": "compaction"}]),
    "conversation": Row(None, "c"),
    "image": Row(None, {"size": "a"}),
    "include": Row([], ["message.output_text.logprobs"]),
    "input": Row([{"role": "user", "content": "a"}], []),
    "instructions": Row("a", 5),
    "max_output_tokens": Row(5, 0),
    "max_tool_calls": Row(None, 5),
    "metadata": Row({"a": "b"}, {"a": 5}),
    "model": Row("fake", 5),
    "moderation": Row(None, {"model": "m"}),
    "parallel_tool_calls": Row(False, 0),
    "previous_response_id": Row(None, "r"),
    "prompt": Row(None, {"id": "p"}),
    "prompt_cache_key": Row("a", 5),
    "prompt_cache_options": Row({"mode": "implicit"}, 5),
    "prompt_cache_retention": Row("24h", "1h"),
    "reasoning": Row({"effort": None}, {"effort": "high"}),
    "safety_identifier": Row("a", 5),
    "service_tier": Row("flex", 5),
    "store": Row(True, 1),
    "text": Row({"format": {"type": "text"}}, {"format": {"type": "json_object"}}),
    "tool_choice": Row("none", "required", {"tools": [TOOL]}),
    "tools": Row([TOOL], [{"type": "web_search"}]),
    "top_logprobs": Row(0, 5),
    "truncation": Row("disabled", "auto"),
}
ENDPOINTS: dict[str, tuple[dict[str, object], dict[str, Row]]] = {
    "/v1/completions": ({"prompt": "a"}, SAMPLING | COMPLETIONS),
    "/v1/chat/completions": ({"messages": [{"role": "user", "content": "a"}]}, SAMPLING | CHAT),
    "/v1/responses": ({"input": "a"}, SAMPLING | {"n": Row(1, 2)} | RESPONSES),
}
CASES = [(path, name) for path, (_, rows) in ENDPOINTS.items() for name in [*rows, *VLLM]]
NOT_OF_RESPONSES = {"frequency_penalty", "logit_bias", "n", "presence_penalty", "seed", "stop"}


@pytest.mark.parametrize(
    ("path", "kind", "own"),
    [
        ("/v1/completions", completions.CompletionCreateParamsStreaming, set()),
        ("/v1/chat/completions", chat.CompletionCreateParamsStreaming, set()),
        ("/v1/responses", responses.ResponseCreateParamsStreaming, NOT_OF_RESPONSES),
    ],
)
def test_the_tables_have_all_that_openai_has(path: str, kind: Any, own: set[str]) -> None:
    assert kind.__required_keys__ | kind.__optional_keys__ == ENDPOINTS[path][1].keys() - own


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    server = FakeServer.of(tool_parsers={"hermes": tool_parsers.hermes}, tool_call_parser="hermes")
    with server.client:  # one event loop for all
        yield server


@pytest.mark.parametrize(("path", "name"), CASES)
def test_a_parameter_is_taken_or_refused_by_its_name(server: FakeServer, path: str, name: str) -> None:
    least, rows = ENDPOINTS[path]
    row = (rows | VLLM)[name]
    answer = server.client.post(path, json=least | row.beside | {name: row.taken})
    assert answer.status_code == 200, answer.text
    status, code, param = server.refused(path, **(least | row.beside | {name: row.refused}))
    assert status == 400 and code != "internal_error"
    assert (param or "").split(".")[0] == name
