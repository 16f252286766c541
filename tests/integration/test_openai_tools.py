"""Tools with the real openai client: a real `quire serve tiny`, which is made to say each call token by token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from made_plugins import FORCED, write_plugin
from openai import BadRequestError, OpenAI
from openai.types.chat import ChatCompletion
from server_process import ServerProcess

TEMPLATE = """\
{%- if tools %}<|im_start|>system
Tools: {{ tools | tojson }}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
HI: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather in Zürich and in Oslo?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
ZURICH = '{"name": "weather", "arguments": {"city": "Zürich"}}'
OSLO = '{"name": "weather", "arguments": {"city": "Oslo"}}'
CALLS = f"I look it up.<tool_call>\n{ZURICH}\n</tool_call>\n<tool_call>\n{OSLO}\n</tool_call>"
BOTH = [("weather", {"city": "Zürich"}), ("weather", {"city": "Oslo"})]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("plugins")
    write_plugin(folder, "forced", FORCED)
    template = folder / "tools.jinja"
    template.write_text(TEMPLATE)
    flags = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--chat-template", str(template))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        with ServerProcess(*flags) as server:
            yield server.url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


class Asker:
    """Asks for a chat whose answer is known."""

    def __init__(self, client: OpenAI, url: str) -> None:
        self.client = client
        self._url = url

    def fields(self, said: str, **fields: Any) -> dict[str, Any]:
        """Of a request whose answer is this text."""
        extra = {"vllm_xargs": {"forced": self.token_ids(said + "<|im_end|>")}, "return_token_ids": True}
        return {"model": "tiny", "messages": HI, "tools": TOOLS, "extra_body": extra, **fields}

    def __call__(self, said: str, **fields: Any) -> ChatCompletion:
        answer = self.client.chat.completions.create(**self.fields(said, **fields))
        assert isinstance(answer, ChatCompletion)
        return answer

    def token_ids(self, text: str) -> list[int]:
        body = {"model": "tiny", "prompt": text, "add_special_tokens": False}
        found: list[int] = httpx.post(f"{self._url}/tokenize", json=body).json()["tokens"]
        return found

    def prompt(self, answer: ChatCompletion) -> str:
        """What the model read."""
        body = {"model": "tiny", "tokens": answer.prompt_token_ids}  # type: ignore[attr-defined]  # no field of OpenAI's
        return str(httpx.post(f"{self._url}/detokenize", json=body).json()["prompt"])


@pytest.fixture(scope="module")
def ask(client: OpenAI, url: str) -> Asker:
    return Asker(client, url)


def called(calls: Any) -> list[tuple[str, object]]:
    """Names and arguments."""
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls or ()]


@pytest.mark.parametrize("n", [1, 2])
def test_calls_of_a_whole_answer(ask: Asker, n: int) -> None:
    answer = ask(CALLS, n=n, tool_choice="auto")
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "I look it up."
        assert called(choice.message.tool_calls) == BOTH
    ids = [call.id for choice in answer.choices for call in choice.message.tool_calls or ()]
    assert len(ids) == len(set(ids)) == len(answer.choices) * 2 and n == len(answer.choices)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == n * len(ask.token_ids(CALLS + "<|im_end|>"))


def test_calls_of_a_stream(ask: Asker) -> None:
    fields = ask.fields(CALLS, stream=True, stream_options={"include_usage": True})
    chunks: list[Any] = list(ask.client.chat.completions.create(**fields))
    assert chunks[-1].usage.completion_tokens == len(ask.token_ids(CALLS + "<|im_end|>"))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == "I look it up."
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["tool_calls"]
    parts = [call for choice in choices for call in choice.delta.tool_calls or ()]
    assert [part.index for part in parts] == [0, 1] and called(parts) == BOTH
    assert all(part.id and part.type == "function" for part in parts) and parts[0].id != parts[1].id
    assert sum(bool(choice.delta.tool_calls) for choice in choices) == 2, "each is told when it is whole"


def test_the_clients_own_accumulation(ask: Asker) -> None:
    with ask.client.chat.completions.stream(**ask.fields(CALLS)) as stream:
        kinds = [event.type for event in stream]
        choice = stream.get_final_completion().choices[0]
    assert kinds.count("tool_calls.function.arguments.done") == 2
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look it up.")
    assert called(choice.message.tool_calls) == BOTH


def test_a_conversation_goes_on_with_the_results(ask: Asker) -> None:
    message = ask(CALLS).choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": f"{degrees} degrees"}
        for call, degrees in zip(message.tool_calls or (), (21, 9), strict=True)
    ]
    answer = ask("It is warm.", messages=[*HI, message, *results])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("It is warm.", "stop")
    assert not answer.choices[0].message.tool_calls
    prompt = ask.prompt(answer)
    assert 'I look it up.<tool_call>{"name": "weather", "arguments": {"city": "Zürich"}}' in prompt
    assert "tool\n21 degrees<|im_end|>" in prompt and "tool\n9 degrees<|im_end|>" in prompt


def test_the_model_is_told_of_tools_it_may_call(ask: Asker) -> None:
    told = ask.prompt(ask("Yes.", tool_choice="auto"))
    assert f"Tools: {json.dumps(TOOLS)}" in told
    assert ask.prompt(ask("Yes.")) == told
    assert "Tools:" not in ask.prompt(ask("Yes.", tool_choice="none"))


@pytest.mark.parametrize("is_stream", [False, True])
def test_without_a_choice_of_tools_calls_are_text(ask: Asker, is_stream: bool) -> None:
    fields = ask.fields(CALLS, tool_choice="none")
    if is_stream:
        with ask.client.chat.completions.stream(**fields) as stream:
            choice: Any = stream.get_final_completion().choices[0]
    else:
        choice = ask.client.chat.completions.create(**fields).choices[0]
    assert (choice.message.content, choice.finish_reason) == (CALLS, "stop")
    assert not choice.message.tool_calls


def test_one_call_where_no_more_are_wanted(ask: Asker) -> None:
    choice = ask(CALLS, parallel_tool_calls=False).choices[0]
    assert called(choice.message.tool_calls) == BOTH[:1]


@pytest.mark.parametrize("said", [CALLS.replace("weather", "wheather"), "<tool_call>{no JSON</tool_call>"])
def test_what_is_no_call_is_text(ask: Asker, said: str) -> None:
    choice = ask(said).choices[0]
    assert (choice.message.content, choice.finish_reason) == (said, "stop")


def test_a_call_that_is_cut_is_text(ask: Asker) -> None:
    num_tokens = len(ask.token_ids(CALLS)) // 3
    choice = ask(CALLS, max_tokens=num_tokens).choices[0]
    assert choice.finish_reason == "length" and not choice.message.tool_calls
    content = choice.message.content or ""
    assert "<tool_call>" in content and CALLS.startswith(content)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_call_cannot_be_forced(ask: Asker, choice: object, is_stream: bool) -> None:
    with pytest.raises(BadRequestError) as refused:
        ask.client.chat.completions.create(**ask.fields("x", tool_choice=choice, stream=is_stream))
    assert (refused.value.code, refused.value.param) == ("tool_choice_unsupported", "tool_choice")
    assert refused.value.type == "invalid_request_error" and '"auto"' in refused.value.message


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"type": "function"}, "tools.0.function"),
        ({"type": "function", "function": {"name": "two words"}}, "tools.0.function.name"),
        (
            {"type": "function", "function": {"name": "f", "parameters": "city"}},
            "tools.0.function.parameters",
        ),
        ({"type": "retrieval", "function": {"name": "f"}}, "tools.0.type"),
    ],
)
def test_tools_have_a_schema(ask: Asker, tool: dict[str, object], param: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        ask("x", tools=[tool])
    assert refused.value.param == param


def test_calls_of_the_responses_endpoint(ask: Asker) -> None:
    fields: dict[str, Any] = {
        "model": "tiny",
        "input": HI[0]["content"],
        "tools": [{"type": "function", **TOOLS[0]["function"]}],  # type: ignore[dict-item]  # a dict, see above
        "extra_body": {"vllm_xargs": {"forced": ask.token_ids(CALLS + "<|im_end|>")}},
    }
    answer = ask.client.responses.create(**fields)
    with ask.client.responses.stream(**fields) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_response()
    assert kinds.count("response.function_call_arguments.done") == 2
    for response in (answer, streamed):
        calls: list[Any] = [item for item in response.output if item.type == "function_call"]
        assert [(call.name, json.loads(call.arguments)) for call in calls] == BOTH
        assert response.output_text == "I look it up."
