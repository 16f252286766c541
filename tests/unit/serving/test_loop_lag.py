"""No body, however hostile, keeps the event loop from others for long."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Callable, Iterator
from functools import cache

import httpx
import pytest
from fake_engine import FakeEngine, FakeTokenizer
from serving_app import state_of
from starlette.types import ASGIApp

from quire.loading.tokenizer import Tokenizer
from quire_models import tiny
from quire_serving.app import create_app

SIZE = 8 * 2**20 - 1024
LIMIT_S = 0.25  # a fifth of it on a machine that has nothing else to do
TRIES = 3


@cache
def real_tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(tiny.__path__[0])


class RealTexts(FakeTokenizer):
    """The texts and tokens of "tiny"."""

    def __init__(self) -> None:
        super().__init__()
        self.max_chars_per_token = real_tokenizer().max_chars_per_token

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return real_tokenizer().encode(text, add_special_tokens=add_special_tokens)

    def id_to_piece(self, token_id: int) -> str | None:
        return real_tokenizer().id_to_piece(token_id)


def filled(head: str, unit: str, tail: str, most: int = 10**9) -> bytes:
    count = min((SIZE - len(head) - len(tail)) // len(unit), most)
    return (head + unit * count + tail).encode()


def entries(head: str, tail: str, count: int) -> bytes:
    return (head + ",".join(f'"k{number}":1' for number in range(count)) + tail).encode()


COMPLETION = '{"prompt":"a",'
BODIES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "text": ("/v1/completions", lambda: filled('{"prompt":"', "a", '"}')),
    "escapes": ("/v1/completions", lambda: filled('{"prompt":"', "\\u0061", '"}')),
    "brackets in text": ("/v1/completions", lambda: filled('{"prompt":"', "[{", '"}')),
    "quotes in text": ("/v1/completions", lambda: filled('{"prompt":"', '\\"', '"}')),
    "deep": ("/v1/completions", lambda: filled('{"prompt":', "[", "")),
    "flat lists": ("/v1/completions", lambda: filled('{"prompt":[', "[],", "[]]}")),
    "most lists": ("/v1/completions", lambda: filled('{"prompt":[', "[],", "[]]}", 2**16 - 4)),
    "strings": ("/v1/completions", lambda: filled('{"prompt":[', '"a",', '"a"]}')),
    "most strings": ("/v1/completions", lambda: filled('{"prompt":[', '"a",', '"a"]}', 2**16 - 4)),
    "token ids": ("/v1/completions", lambda: filled('{"prompt":[', "1,", "1]}")),
    "most token ids": ("/v1/completions", lambda: filled('{"echo":true,"prompt":[', "7,", "1]}", 2**19 - 4)),
    "prompts of ids": ("/v1/completions", lambda: filled('{"prompt":[', "[1,2],", "[1]]}", 2**16 - 4)),
    "fields": ("/v1/completions", lambda: entries(COMPLETION, "}", 700_000)),
    "most fields": ("/v1/completions", lambda: entries(COMPLETION, "}", 2**16 - 4)),
    "biases": ("/v1/completions", lambda: entries(COMPLETION + '"logit_bias":{', "}}", 2**16 - 8)),
    "xargs": ("/v1/completions", lambda: entries(COMPLETION + '"vllm_xargs":{', "}}", 2**16 - 8)),
    "metadata": (
        "/v1/chat/completions",
        lambda: entries('{"messages":[{"role":"user","content":"a"}],"metadata":{', "}}", 2**16 - 16),
    ),
    "metadata of a response": (
        "/v1/responses",
        lambda: entries('{"input":"a","metadata":{', "}}", 2**16 - 16),
    ),
    "messages": (
        "/v1/chat/completions",
        lambda: filled('{"messages":[', '{"role":"user","content":"a"},', '{"role":"user","content":"a"}]}', 4095),
    ),
    "pieces": ("/tokenize", lambda: filled('{"return_token_strs":true,"prompt":"', "a,", '"}', 6000)),
    "detokenize": ("/detokenize", lambda: filled('{"tokens":[', "40,", "1]}", 2**19 - 4)),
}  # fmt: skip


@cache
def app() -> ASGIApp:
    engine = FakeEngine()
    engine.tokenizer = RealTexts()
    return create_app(state_of(engine))


async def lag_s(path: str, body: bytes) -> tuple[float, int]:
    """The longest time for which the loop did nothing else, and the answer's status.

    Of this process: what others do on the machine does not count.
    """
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        before = time.process_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.process_time()
            worst, before = max(worst, now - before), now

    transport = httpx.ASGITransport(app())
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        headers = {"Content-Type": "application/json"}
        await client.post(path, content=b"{}", headers=headers)  # what is made once
        request = client.build_request("POST", path, content=body, headers=headers)
        task = asyncio.create_task(tick())
        await asyncio.sleep(0.01)
        answer = await client.send(request)
        task.cancel()
    return worst, answer.status_code


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    gc.freeze()  # as the server does
    yield
    gc.unfreeze()


@pytest.mark.parametrize("name", BODIES)
def test_the_loop_goes_on(name: str) -> None:
    path, make = BODIES[name]
    body = make()
    lags = []
    for _ in range(TRIES):
        lag, status = asyncio.run(lag_s(path, body))
        assert status in (200, 400)
        lags.append(lag)
        if lag < LIMIT_S:
            break
    assert min(lags) < LIMIT_S, [f"{lag:.3f}" for lag in lags]


def test_a_hopeless_text_is_refused_at_once() -> None:
    body = json.dumps({"prompt": "a" * SIZE}).encode()

    async def main() -> float:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app()), base_url="http://localhost"
        ) as client:
            headers = {"Content-Type": "application/json"}
            begin_s = time.process_time()
            answer = await client.post("/v1/completions", content=body, headers=headers)
            assert answer.json()["error"]["code"] == "context_length_exceeded"
            return time.process_time() - begin_s

    assert min(asyncio.run(main()) for _ in range(TRIES)) < LIMIT_S
