"""The real openai client against a server of the real model "tiny", in this process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

from quire import LLM, SamplingParams
from quire.api.client import EngineClient
from quire.api.config import EngineConfig
from quire.api.serving import ServerExtensions
from quire.engine.local_client import LocalEngine
from quire_serving.admission import Admission
from quire_serving.app import create_app
from quire_serving.metrics import ServerMetrics
from quire_serving.settings import ServeSettings
from quire_serving.state import ServerState

PROMPT = "San Francisco is a"


def state_of(engine: EngineClient) -> ServerState:
    settings = ServeSettings(access_log=False)
    return ServerState(
        client=engine,
        settings=settings,
        extensions=ServerExtensions(),
        model_names=("tiny",),
        created=int(time.time()),
        admission=Admission(engine, settings),
        metrics=ServerMetrics(engine, "tiny"),
    )


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """A server in a thread, with an event loop of its own."""
    ports: list[int] = []
    servers: list[uvicorn.Server] = []
    is_up = threading.Event()

    async def serve() -> None:
        engine = await LocalEngine.start(EngineConfig.from_keywords({"model": "tiny"}))
        try:
            config = uvicorn.Config(create_app(state_of(engine)), port=0, log_level="warning", lifespan="off")
            server = uvicorn.Server(config)
            servers.append(server)
            task = asyncio.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0.01)
            ports.append(server.servers[0].sockets[0].getsockname()[1])
            is_up.set()
            await task
        finally:
            await engine.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert is_up.wait(60)
    yield f"http://127.0.0.1:{ports[0]}/v1"
    servers[0].should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
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
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is 2 + 3?"},
    ]
    fields = {"model": "tiny", "messages": messages, "max_tokens": 8, "temperature": 0, "logprobs": True}
    answer = client.chat.completions.create(**fields, top_logprobs=3)  # type: ignore[call-overload]  # plain fields
    logprobs = answer.choices[0].logprobs.content
    assert len(logprobs) == answer.usage.completion_tokens and len(logprobs[0].top_logprobs) == 3
    chunks = list(
        client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]  # plain fields
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == answer.choices[0].message.content and chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == answer.usage or chunks[-1].usage.total_tokens == answer.usage.total_tokens


def test_the_asynchronous_client_streams_many_at_once(base_url: str, greedy: str) -> None:
    async def main() -> None:
        async with AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:

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
    assert long.value.code in {"context_length_exceeded", "invalid_prompt"}
