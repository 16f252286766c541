"""Long work of a request is done in a thread, short work on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from fake_engine import FakeEngine, FakeTokenizer
from serving_app import FakeServer

from quire_serving.routes import answering


def is_on_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class WatchedTokenizer(FakeTokenizer):
    """Notes where it works."""

    def __init__(self) -> None:
        super().__init__()
        self.on_loop: list[bool] = []

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.on_loop.append(is_on_loop())
        return super().encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        self.on_loop.append(is_on_loop())
        return super().decode(token_ids, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize("length", [500, 900])
@pytest.mark.parametrize("prompt", ["a", [97]])
def test_prompts_are_tokenized_in_a_thread_where_they_are_long_together(
    prompt: str | list[int], length: int
) -> None:
    engine = FakeEngine()
    engine.tokenizer = tokenizer = WatchedTokenizer()
    prompts = [prompt * length] * 3
    body = FakeServer.of(engine).ok("/v1/completions", prompt=prompts, echo=True)
    assert body["choices"][2]["text"] == "a" * length + "Hello world"
    assert tokenizer.on_loop == [3 * length <= 2048] * 3


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/v1/completions", {"prompt": "a", "logprobs": 20}),
        ("/v1/completions", {"prompt": "a" * 1000, "prompt_logprobs": 1, "n": 3}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 20},
        ),
    ],
)
def test_many_logprobs_are_told_from_a_thread(
    monkeypatch: pytest.MonkeyPatch, path: str, wanted: dict[str, object]
) -> None:
    on_loop: list[bool] = []
    body_of = answering._body

    def watched(answer: answering.Answer) -> bytes:
        on_loop.append(is_on_loop())
        return body_of(answer)

    monkeypatch.setattr(answering, "_body", watched)
    server = FakeServer.of(FakeEngine(["x"] * 100))
    few = {**wanted, "n": 1, "logprobs": None, "top_logprobs": None}
    if path == "/v1/completions":
        del few["top_logprobs"]
    assert server.ok(path, **wanted)["choices"]
    assert server.ok(path, **few)["choices"]
    assert on_loop == [False, True]
