"""The real openai client against a real `quire serve tiny`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, AuthenticationError, BadRequestError, NotFoundError, OpenAI
from server_process import ServerProcess

from quire import LLM, SamplingParams

KEY = "a-key-of-the-test"
PROMPT = "San Francisco is a"
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is 2 + 3?"},
    ],
    "max_tokens": 8,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with ServerProcess("--api-key", KEY) as server:
        yield f"{server.url}/v1"


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def greedy() -> str:
    """The text that the offline engine gives."""
    llm = LLM(model="tiny")
    try:
        (output,) = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=12))
        return output.outputs[0].text
    finally:
        llm.close()


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_a_completion_is_the_offline_engines(client: OpenAI, greedy: str) -> None:
    answer = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, temperature=0)
    assert answer.choices[0].text == greedy and answer.usage is not None
    assert answer.usage.completion_tokens == 12 and answer.choices[0].finish_reason == "length"


def test_a_streamed_completion_is_the_same_and_tells_usage(client: OpenAI, greedy: str) -> None:
    chunks = list(
        client.completions.create(
            model="tiny", prompt=[PROMPT, PROMPT], max_tokens=12, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    texts = ["", ""]
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [greedy] * 2
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 24


def test_echo_logprobs_n_and_stop(client: OpenAI, greedy: str) -> None:
    answer = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=6, temperature=0, echo=True, logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None and logprobs.token_logprobs is not None
    assert answer.choices[0].text.startswith(PROMPT) and logprobs.token_logprobs[0] is None
    assert answer.usage is not None
    assert len(logprobs.tokens) == answer.usage.total_tokens
    assert all(value is not None and value <= 0 for value in logprobs.token_logprobs[1:])
    several = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=4, n=3, seed=1)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    stop = greedy[5]
    stopped = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=12, temperature=0, stop=[stop]
    )
    assert stopped.choices[0].text == greedy[: greedy.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_a_seed_gives_the_same_text(client: OpenAI) -> None:
    texts = [
        client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, temperature=1, seed=seed)
        .choices[0]
        .text
        for seed in (5, 5, 6)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_chat_streams_what_it_answers(client: OpenAI) -> None:
    answer = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=3)
    (choice,) = answer.choices
    assert answer.usage is not None and choice.logprobs is not None and choice.logprobs.content
    assert choice.message.role == "assistant" and choice.message.content
    tokens = [each.token for each in choice.logprobs.content]
    assert len(tokens) == answer.usage.completion_tokens
    assert "".join(tokens).removesuffix("<|im_end|>") == choice.message.content
    assert all(len(each.top_logprobs) == 3 for each in choice.logprobs.content)
    fields = {**CHAT, "logprobs": True, "stream": True, "stream_options": {"include_usage": True}}
    chunks: list[Any] = list(client.chat.completions.create(**fields))
    parts = [chunk.choices[0] for chunk in chunks[:-1]]
    assert "".join(part.delta.content or "" for part in parts) == choice.message.content
    assert parts[0].delta.role == "assistant" and parts[-1].finish_reason == choice.finish_reason
    assert [each.token for part in parts if part.logprobs for each in part.logprobs.content] == tokens
    assert chunks[-1].usage.total_tokens == answer.usage.total_tokens


def test_n_and_stop_of_a_chat(client: OpenAI) -> None:
    whole = client.chat.completions.create(**CHAT).choices[0].message.content or ""
    stop = whole[2]
    answer = client.chat.completions.create(**CHAT, n=3, stop=stop)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert (choice.message.content, choice.finish_reason) == (whole[: whole.index(stop)], "stop")
    fields = {**CHAT, "n": 2, "stream": True, "temperature": 1, "seed": 7, "max_tokens": 24}
    texts = ["", ""]
    chunks: list[Any] = list(client.chat.completions.create(**fields))
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    again = client.chat.completions.create(**{**fields, "stream": False}).choices
    assert texts == [choice.message.content for choice in again] and texts[0] != texts[1]


def test_the_asynchronous_client_streams_many_at_once(base_url: str, greedy: str) -> None:
    async def main() -> None:
        async with AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0) as client:

            async def one() -> str:
                stream = await client.completions.create(
                    model="tiny", prompt=PROMPT, max_tokens=12, temperature=0, stream=True
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

            assert await asyncio.gather(*[one() for _ in range(16)]) == [greedy] * 16

    asyncio.run(main())


def test_errors_have_openais_shape(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as missing:
        client.completions.create(model="other", prompt=PROMPT)
    assert missing.value.code == "model_not_found"
    with pytest.raises(BadRequestError) as bad:
        client.completions.create(model="tiny", prompt=PROMPT, temperature=3)
    assert bad.value.param == "temperature"
    with pytest.raises(BadRequestError) as long:
        client.completions.create(model="tiny", prompt=[5] * 100_000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(BadRequestError) as unknown:
        client.chat.completions.create(**CHAT, extra_body={"temprature": 1})
    assert unknown.value.param == "temprature"
    with pytest.raises(BadRequestError) as tools:
        client.chat.completions.create(**CHAT, tools=[{"type": "function", "function": {"name": "f"}}])
    assert (tools.value.code, tools.value.param) == ("tool_parser_missing", "tools")
    with pytest.raises(AuthenticationError) as stranger:
        client.with_options(api_key="wrong").models.list()
    assert stranger.value.code == "invalid_api_key"
