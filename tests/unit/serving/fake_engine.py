"""An EngineClient without an engine, for tests of routes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace

from quire.api.client import EngineDescription, EngineRequest, EngineStatus
from quire.api.config import EngineConfig
from quire.api.errors import TokenizerError
from quire.api.outputs import ChoiceDelta, Logprob, Metric, OutputDelta, RequestMetrics

Script = Callable[[EngineRequest], Sequence[OutputDelta | Exception]]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


class FakeTokenizer:
    """Each character is a token, its code point; special tokens are none."""

    eos_token_id = 0
    all_special_ids: frozenset[int] = frozenset()
    max_chars_per_token: int | None = 1

    def __init__(self, chat_template: str | None = TEMPLATE) -> None:
        self.chat_template: str | Mapping[str, str] | None = chat_template
        self.rendered: list[dict[str, object]] = []

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Code points."""
        del add_special_tokens
        if re.search("[\ud800-\udfff]", text):
            raise TokenizerError("the text cannot be tokenized: lone surrogate")
        return [ord(character) for character in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Characters."""
        del skip_special_tokens
        return "".join(map(chr, token_ids))

    def id_to_piece(self, token_id: int) -> str | None:
        """The character."""
        return chr(token_id) if 0 <= token_id < 0x110000 else None

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **values: object,
    ) -> str:
        """`<role>content` of each message; `<assistant>` at the end of a generation prompt."""
        if chat_template is None and self.chat_template is None:
            raise TokenizerError("the model has no chat template")
        self.rendered.append({"messages": messages, "chat_template": chat_template, **values})
        del continue_final_message
        text = "".join(f"<{message['role']}>{message.get('content') or ''}" for message in messages)
        return text + "<assistant>" * add_generation_prompt


def deltas_of(
    request: EngineRequest, pieces: Sequence[str], finish_reason: str = "stop"
) -> list[OutputDelta]:
    """What an engine would send if each choice got these pieces; each piece is one token."""
    count = request.params.n
    name = request.request_id
    deltas = []
    for position, piece in enumerate(pieces):
        choices = [
            ChoiceDelta(index, piece, [ord(piece[0])], _logprobs(request, piece)) for index in range(count)
        ]
        deltas.append(OutputDelta(name, choices))
        if position == 0 and request.params.prompt_logprobs is not None:
            deltas[0].prompt_logprobs = [
                None if place == 0 else {token: Logprob(-0.5, 1, chr(token))}
                for place, token in enumerate(request.token_ids)
            ]
    if not deltas:
        deltas.append(OutputDelta(name, [ChoiceDelta(index, "", []) for index in range(count)]))
    last = deltas[-1]
    last.choices = [replace(choice, finish_reason=finish_reason) for choice in last.choices]
    last.finished = True
    last.metrics = RequestMetrics(arrival_s=0.0, num_cached_tokens=2)
    return deltas


def _logprobs(request: EngineRequest, piece: str) -> list[dict[int, Logprob]] | None:
    count = request.params.logprobs
    if count is None:
        return None
    others = {ord("a") + rank: Logprob(-2.0 - rank, rank + 2, chr(ord("a") + rank)) for rank in range(count)}
    return [{ord(piece[0]): Logprob(-0.25, 1, piece), **others}]


class FakeEngine:
    """Answers each request with what a script makes of it: deltas, and errors that are raised.

    Attributes:
        requests: those submitted. aborted: ids of those that were left before their end.
        pause_s: between deltas; None does not even give the loop a turn.
        is_stuck: after the first delta nothing more comes.
    """

    def __init__(self, script: Script | Sequence[str] = ("Hello", " world"), **description: object) -> None:
        pieces = script
        self.script: Script = script if callable(script) else (lambda request: deltas_of(request, pieces))  # type: ignore[arg-type]  # not callable: pieces
        self.tokenizer: FakeTokenizer | None = FakeTokenizer()
        self.requests: list[EngineRequest] = []
        self.aborted: list[str] = []
        self.pause_s: float | None = 0.0
        self.is_stuck = False
        self.is_ready = True
        self.is_given_up = False
        self.num_waiting = 0
        self.num_waiting_tokens = 0
        self.num_running = 0
        self.metrics: list[Metric] = []
        self.switched: list[tuple[str, bool]] = []
        self.is_closed = False
        values: dict[str, object] = {
            "config": EngineConfig.from_keywords({"model": "fake"}),
            "architecture": "FakeForCausalLM",
            "dtype": "float32",
            "device": "cpu",
            "max_model_len": 1024,
            "max_num_seqs": 8,
            "vocab_size": 0x110000,
            "num_kv_blocks": 64,
            "block_size": 16,
            "fingerprint": "0" * 16,
        }
        self.description = EngineDescription(**{**values, **description})  # type: ignore[arg-type]  # of tests

    async def stream(self, request: EngineRequest) -> AsyncGenerator[OutputDelta, None]:
        """See EngineClient."""
        self.requests.append(request)
        self.num_running += 1
        is_ended = False
        try:
            for item in self.script(request):
                if self.pause_s is not None:
                    await asyncio.sleep(self.pause_s)
                if isinstance(item, Exception):
                    is_ended = True
                    raise item
                is_ended = item.finished
                yield item
                if self.is_stuck:
                    await asyncio.Event().wait()
        finally:
            self.num_running -= 1
            if not is_ended:
                self.aborted.append(request.request_id)

    async def abort(self, request_id: str) -> None:
        """See EngineClient."""
        self.aborted.append(request_id)

    def status(self) -> EngineStatus:
        """See EngineClient."""
        return EngineStatus(
            is_ready=self.is_ready,
            reason="" if self.is_ready else "it is down",
            num_requests=self.num_running + self.num_waiting,
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            num_waiting_tokens=self.num_waiting_tokens,
            is_ended=self.is_given_up or self.is_closed,
        )

    async def get_metrics(self) -> list[Metric]:
        """See EngineClient."""
        return self.metrics

    async def set_plugin(self, name: str, *, is_enabled: bool) -> None:
        """See EngineClient."""
        self.switched.append((name, is_enabled))

    async def reset_prefix_cache(self) -> None:
        """See EngineClient."""

    async def close(self) -> None:
        """See EngineClient."""
        self.is_closed = True
