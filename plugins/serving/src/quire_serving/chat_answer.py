"""What /v1/chat/completions answers, from the engine's deltas."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

from quire.api.client import EngineRequest
from quire.api.outputs import ChoiceDelta, Logprob, OutputDelta, PositionLogprobs
from quire.api.serving import ParsedText, TextParser, ToolCallDelta
from quire_serving.protocol.chat import ChatRequest
from quire_serving.protocol.common import by_rank, clamped, prompt_logprobs_body, system_fingerprint, text_of
from quire_serving.state import ServerState
from quire_serving.submission import DONE, Submission, event, tells_cached_tokens, usage_of


@dataclass(slots=True)
class _Choice:
    """What a choice has got; a stream keeps only what it needs to go on."""

    index: int
    parser: TextParser
    contents: list[str] = field(default_factory=list)
    reasonings: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, object]] = field(default_factory=dict)
    logprobs: list[dict[str, object]] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    num_tokens: int = 0
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def parse(self, part: ChoiceDelta) -> ParsedText:
        """What a part's text means; all that was held back where the choice ends."""
        parsed = self.parser.push(part.text) if part.text else ParsedText()
        if part.finish_reason is None:
            return parsed
        last = self.parser.flush()
        return ParsedText(
            parsed.content + last.content,
            parsed.reasoning + last.reasoning,
            [*parsed.tool_calls, *last.tool_calls],
        )


class ChatAnswer:
    """Puts a response together, or the events of a stream.

    Args:
        body: the request.
        state: for the model's name, and what usage tells.
        request: what the engine gets; its id is the response's.
        new_parser: makes the parser of a choice.
    """

    def __init__(
        self,
        body: ChatRequest,
        state: ServerState,
        request: EngineRequest,
        new_parser: Callable[[], TextParser],
    ) -> None:
        self._body = body
        self._request = request
        self._tells_cached = tells_cached_tokens(state)
        self._num_cached = 0
        self._prompt_logprobs: list[PositionLogprobs | None] | None = None
        self._choices = [_Choice(index, new_parser()) for index in range(request.params.n)]
        self._head: dict[str, object] = {
            "id": request.request_id,
            "object": "chat.completion.chunk" if body.stream else "chat.completion",
            "created": int(time.time()),
            "model": state.model_names[0],
            "system_fingerprint": system_fingerprint(state),
        }

    def add(self, index: int, delta: OutputDelta) -> None:
        """Take a delta, for `response`."""
        del index  # there is one request
        self._count(delta)
        for part in delta.choices:
            choice = self._choices[part.index]
            parsed = choice.parse(part)
            choice.contents.append(parsed.content)
            choice.reasonings.append(parsed.reasoning)
            self._call_chunks(choice, parsed.tool_calls)
            choice.token_ids.extend(part.token_ids)
            choice.num_tokens += len(part.token_ids)
            choice.logprobs.extend(self._logprobs(part))
            self._end(choice, part)

    def response(self) -> dict[str, object]:
        """The response, when all deltas have come."""
        body: dict[str, object] = {
            **self._head,
            "choices": [self._choice_body(choice) for choice in self._choices],
            "service_tier": "default",
            "usage": self._usage(),
        }
        if self._prompt_logprobs is not None:
            body["prompt_logprobs"] = prompt_logprobs_body(self._prompt_logprobs)
        if self._body.return_token_ids:
            body["prompt_token_ids"] = list(self._request.token_ids)
        return body

    async def events(self, submission: Submission) -> AsyncGenerator[bytes, None]:
        """The events of a stream."""

        def chunk(choices: list[dict[str, object]]) -> bytes:
            if self._body.has_continuous_usage:
                return event({**self._head, "choices": choices, "usage": self._usage()})
            if self._body.has_usage:
                return event({**self._head, "choices": choices, "usage": None})
            return event({**self._head, "choices": choices})

        yield b"".join([chunk([self._opening(choice)]) for choice in self._choices])
        async for _, delta in submission:
            self._count(delta)
            chunks = [chunk([told]) for part in delta.choices for told in self._chunks(part)]
            if chunks:
                yield b"".join(chunks)
        if self._body.has_usage:
            yield event({**self._head, "choices": [], "usage": self._usage()})
        yield DONE

    def _count(self, delta: OutputDelta) -> None:
        if delta.metrics is not None:
            self._num_cached = delta.metrics.num_cached_tokens
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs = delta.prompt_logprobs

    def _opening(self, choice: _Choice) -> dict[str, object]:
        """The first chunk of a choice tells who speaks."""
        opening: dict[str, object] = {
            "index": choice.index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        if self._body.return_token_ids:
            opening["prompt_token_ids"] = list(self._request.token_ids)
        return opening

    def _chunks(self, part: ChoiceDelta) -> list[dict[str, object]]:
        """A choice's part of chunks, none where there is nothing to say.

        Each tells of one call at most: clients take a call for done when a chunk tells of the next one.
        """
        choice = self._choices[part.index]
        choice.num_tokens += len(part.token_ids)
        parsed = choice.parse(part)
        delta: dict[str, object] = {}
        if parsed.content:
            delta["content"] = parsed.content
        if parsed.reasoning and self._body.include_reasoning:
            delta["reasoning_content"] = delta["reasoning"] = parsed.reasoning
        chunks: list[dict[str, object]] = []
        for _, calls in groupby(self._call_chunks(choice, parsed.tool_calls), itemgetter("index")):
            if "tool_calls" in delta:
                chunks.append({"index": part.index, "delta": delta, "logprobs": None, "finish_reason": None})
                delta = {}
            delta["tool_calls"] = list(calls)
        self._end(choice, part)
        has_more = part.logprobs or part.finish_reason is not None or self._body.return_token_ids
        if not delta and not has_more:
            return []
        chunk: dict[str, object] = {
            "index": part.index,
            "delta": delta,
            "logprobs": {"content": self._logprobs(part), "refusal": None} if part.logprobs else None,
            "finish_reason": choice.finish_reason,
        }
        if choice.finish_reason is not None:
            chunk["stop_reason"] = choice.stop_reason
        if self._body.return_token_ids:
            chunk["token_ids"] = part.token_ids
        return [*chunks, chunk]

    def _end(self, choice: _Choice, part: ChoiceDelta) -> None:
        if part.finish_reason is not None:
            has_called = bool(choice.calls) and part.finish_reason == "stop"
            choice.finish_reason = "tool_calls" if has_called else part.finish_reason
            choice.stop_reason = part.stop_reason

    def _call_chunks(self, choice: _Choice, parts: Sequence[ToolCallDelta]) -> list[dict[str, object]]:
        """Parts of calls as streams tell them; the choice's calls grow by them."""
        chunks: list[dict[str, object]] = []
        for part in parts:
            if part.index >= 1 and self._body.parallel_tool_calls is False:
                continue
            call = choice.calls.get(part.index)
            if call is None:
                function = {"name": part.name or "", "arguments": part.arguments}
                call = {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
                choice.calls[part.index] = call
                chunks.append({"index": part.index, **call, "function": dict(function)})
                continue
            if not self._body.stream:
                known = call["function"]
                known["arguments"] += part.arguments  # type: ignore[index]  # a dict, made above
            chunks.append({"index": part.index, "function": {"arguments": part.arguments}})
        return chunks

    def _choice_body(self, choice: _Choice) -> dict[str, object]:
        content = "".join(choice.contents)
        message: dict[str, object] = {
            "role": "assistant",
            "content": content if content or not choice.calls else None,
            "refusal": None,
        }
        reasoning = "".join(choice.reasonings)
        if reasoning and self._body.include_reasoning:
            message["reasoning_content"] = message["reasoning"] = reasoning
        if choice.calls:
            message["tool_calls"] = [choice.calls[index] for index in sorted(choice.calls)]
        body: dict[str, object] = {
            "index": choice.index,
            "message": message,
            "logprobs": {"content": choice.logprobs, "refusal": None} if self._body.logprobs else None,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if self._body.return_token_ids:
            body["token_ids"] = choice.token_ids
        return body

    def _logprobs(self, part: ChoiceDelta) -> list[dict[str, object]]:
        count = self._body.top_logprobs or 0
        entries: list[dict[str, object]] = []
        for token_id, position in zip(part.token_ids, part.logprobs or (), strict=False):
            top = [_token(*item) for item in by_rank(position)[:count]]
            entries.append({**_token(token_id, position[token_id]), "top_logprobs": top})
        return entries

    def _usage(self) -> dict[str, object]:
        return usage_of(
            len(self._request.token_ids),
            sum(choice.num_tokens for choice in self._choices),
            self._num_cached if self._tells_cached else None,
        )


def _token(token_id: int, logprob: Logprob) -> dict[str, object]:
    text = text_of(token_id, logprob)
    return {"token": text, "logprob": clamped(logprob.logprob), "bytes": list(text.encode(errors="replace"))}
