"""What /v1/completions answers, from the engine's deltas."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from quire.api.client import EngineRequest
from quire.api.outputs import ChoiceDelta, OutputDelta, PositionLogprobs
from quire_serving.protocol.common import by_rank, clamped, prompt_logprobs_body, system_fingerprint, text_of
from quire_serving.protocol.completions import CompletionRequest
from quire_serving.state import ServerState
from quire_serving.submission import DONE, Submission, event, tells_cached_tokens, usage_of
from quire_serving.text_places import TextPlaces

Entry = tuple[int, PositionLogprobs | None]
Decode = Callable[[int], str]


@dataclass(slots=True)
class _Choice:
    """What a choice of a prompt has got."""

    index: int
    places: TextPlaces
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    num_tokens: int = 0
    entries: list[Entry] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    has_prompt: bool = False
    is_begun: bool = False


class CompletionAnswer:
    """Puts a response together, or the events of a stream.

    Args:
        body: the request.
        state: for the model's name and its tokenizer.
        answer_id: of the response.
        requests: what the engine gets, one a prompt.
    """

    def __init__(
        self, body: CompletionRequest, state: ServerState, answer_id: str, requests: Sequence[EngineRequest]
    ) -> None:
        self._body = body
        self._requests = requests
        self._tokenizer = state.client.tokenizer
        self._tells_cached = tells_cached_tokens(state)
        self._n = requests[0].params.n
        self._choices = [
            _Choice(index, TextPlaces(self._is_special)) for index in range(self._n * len(requests))
        ]
        self._prompt_logprobs: list[list[PositionLogprobs | None] | None] = [None] * len(requests)
        self._num_cached = 0
        self._head: dict[str, object] = {
            "id": answer_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": state.model_names[0],
            "system_fingerprint": system_fingerprint(state),
        }

    def add(self, index: int, delta: OutputDelta) -> None:
        """Take a delta of the prompt at `index`, for `response`."""
        self._count(index, delta)
        for part in delta.choices:
            self._add_choice(index, part)

    def response(self) -> dict[str, object]:
        """The response, when all deltas have come."""
        choices = []
        for choice in self._choices:
            one: dict[str, object] = {
                "index": choice.index,
                "text": "".join(choice.texts),
                "logprobs": None
                if self._body.logprobs is None
                else _logprobs(choice.entries, choice.places, self._decode),
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
            }
            place = choice.index // self._n
            if self._body.return_token_ids:
                one["token_ids"] = choice.token_ids
                one["prompt_token_ids"] = list(self._requests[place].token_ids)
            if self._body.prompt_logprobs is not None:
                one["prompt_logprobs"] = prompt_logprobs_body(self._prompt_logprobs[place] or ())
            choices.append(one)
        return {**self._head, "choices": choices, "usage": self._usage()}

    async def events(self, submission: Submission) -> AsyncGenerator[bytes, None]:
        """The events of a stream."""
        async for index, delta in submission:
            self._count(index, delta)
            chunks = []
            for part in delta.choices:
                one = self._chunk(index, part)
                if one is None:
                    continue
                chunk = {**self._head, "choices": [one]}
                if self._body.has_continuous_usage:
                    chunk["usage"] = self._usage()
                elif self._body.has_usage:
                    chunk["usage"] = None
                chunks.append(event(chunk))
            if chunks:
                yield b"".join(chunks)
        if self._body.has_usage:
            yield event({**self._head, "choices": [], "usage": self._usage()})
        yield DONE

    def _count(self, index: int, delta: OutputDelta) -> None:
        if delta.metrics is not None:
            self._num_cached += delta.metrics.num_cached_tokens
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs[index] = delta.prompt_logprobs

    def _add_choice(self, index: int, part: ChoiceDelta) -> tuple[_Choice, str, list[Entry]]:
        """The choice that a part belongs to, with the text and the entries that are new."""
        choice = self._choices[index * self._n + part.index]
        text, token_ids, logprobs = part.text, part.token_ids, part.logprobs
        entries: list[Entry] = []
        if self._body.max_tokens == 0:  # only the prompt was asked for
            text, token_ids, logprobs = "", [], None
        if self._body.echo and not choice.has_prompt:
            choice.has_prompt = True
            request = self._requests[index]
            text = (request.text or "") + text
            if self._body.logprobs is not None:
                entries.extend(zip(request.token_ids, self._prompt_logprobs[index] or (), strict=False))
        if logprobs:
            entries.extend(zip(token_ids, logprobs, strict=False))
        choice.texts.append(text)
        if self._body.logprobs is not None:
            choice.places.add_text(text)
        choice.token_ids.extend(token_ids)
        choice.num_tokens += len(token_ids)
        choice.entries.extend(entries)
        if part.finish_reason is not None:
            choice.finish_reason = "length" if self._body.max_tokens == 0 else part.finish_reason
            choice.stop_reason = part.stop_reason
        return choice, text, entries

    def _chunk(self, index: int, part: ChoiceDelta) -> dict[str, object] | None:
        """A choice of a chunk; None where there is nothing to say."""
        choice, text, entries = self._add_choice(index, part)
        if not text and not entries and part.finish_reason is None and not self._body.return_token_ids:
            return None
        chunk: dict[str, object] = {
            "index": choice.index,
            "text": text,
            "logprobs": None,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if entries:
            chunk["logprobs"] = _logprobs(entries, choice.places, self._decode)
        if self._body.return_token_ids:
            chunk["token_ids"] = list(choice.token_ids)
            if not choice.is_begun:
                chunk["prompt_token_ids"] = list(self._requests[index].token_ids)
        choice.is_begun = True
        choice.texts.clear()  # of a stream only the counts are needed
        choice.token_ids.clear()
        choice.entries.clear()
        return chunk

    def _decode(self, token_id: int) -> str:
        """The text of a token that has no log-probability: the first of a prompt."""
        if self._tokenizer is None:
            return f"token_id:{token_id}"
        return self._tokenizer.decode([token_id], skip_special_tokens=False)

    def _is_special(self, token_id: int) -> bool:
        return self._tokenizer is not None and not self._tokenizer.decode([token_id])

    def _usage(self) -> dict[str, object]:
        return usage_of(
            sum(len(request.token_ids) for request in self._requests),
            sum(choice.num_tokens for choice in self._choices),
            self._num_cached if self._tells_cached else None,
        )


def _logprobs(entries: Sequence[Entry], places: TextPlaces, decode: Decode) -> dict[str, object]:
    """OpenAI's object for tokens."""
    tokens: list[str] = []
    values: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    offsets: list[int] = []
    for token_id, position in entries:
        own = None if position is None else position.get(token_id)
        text = decode(token_id) if own is None else text_of(token_id, own)
        tokens.append(text)
        values.append(None if own is None else clamped(own.logprob))
        tops.append(None if position is None else _top(position))
        offsets.append(places.place(token_id, text))
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def _top(position: PositionLogprobs) -> dict[str, float]:
    """Of tokens that read the same the likeliest counts."""
    top: dict[str, float] = {}
    for token_id, logprob in by_rank(position):
        top.setdefault(text_of(token_id, logprob), clamped(logprob.logprob))
    return top
