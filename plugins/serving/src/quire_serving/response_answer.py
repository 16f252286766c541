"""What /v1/responses answers: one object, or its typed events."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import orjson

from quire.api.client import EngineRequest
from quire.api.outputs import OutputDelta
from quire.api.serving import ParsedText, TextParser
from quire_serving.errors import ApiError, from_quire
from quire_serving.protocol.responses import ResponsesRequest
from quire_serving.response_items import Event, OutputItems
from quire_serving.state import ServerState
from quire_serving.submission import ClientGoneError, Submission, tells_cached_tokens

_logger = logging.getLogger(__name__)


class ResponseAnswer:
    """One response while its tokens come."""

    def __init__(
        self, body: ResponsesRequest, state: ServerState, request: EngineRequest, parser: TextParser
    ) -> None:
        self._parser = parser
        self._items = OutputItems(max_calls=1 if body.parallel_tool_calls is False else None)
        self._num_prompt = len(request.token_ids)
        self._num_output = 0
        self._num_reasoning = 0
        self._num_cached = 0
        self._tells_cached = tells_cached_tokens(state)
        self._is_answering = False  # something else than reasoning has come
        self._status = "completed"
        self._fields = _fields(body, state, request)

    def add(self, index: int, delta: OutputDelta) -> None:
        """Take what the engine gave, for `response`."""
        del index  # there is one request
        for _event in self._grow(delta):
            pass

    def response(self) -> dict[str, Any]:
        """The response after its last delta."""
        reason = {"reason": "max_output_tokens"} if self._status == "incomplete" else None
        return self._fields | {
            "status": self._status,
            "completed_at": time.time() if self._status == "completed" else None,
            "incomplete_details": reason,
            "output": self._items.items,
            "usage": {
                "input_tokens": self._num_prompt,
                "input_tokens_details": {"cached_tokens": self._num_cached, "cache_write_tokens": 0},
                "output_tokens": self._num_output,
                "output_tokens_details": {"reasoning_tokens": self._num_reasoning},
                "total_tokens": self._num_prompt + self._num_output,
            },
        }

    async def events(self, submission: Submission) -> AsyncGenerator[bytes, None]:
        """The stream's events, numbered; an error ends it with `response.failed`."""
        number = 0
        async for each in self._events(submission):
            yield _encoded(each | {"sequence_number": number})
            number += 1

    async def _events(self, submission: Submission) -> AsyncGenerator[Event, None]:
        yield {"type": "response.created", "response": self._fields}
        yield {"type": "response.in_progress", "response": self._fields}
        try:
            async for _, delta in submission:
                for each in self._grow(delta):
                    yield each
        except ClientGoneError:
            raise
        except ApiError as error:
            yield self._failed(error)
        except Exception as error:  # the status line is out: this is the one way left to tell
            _logger.exception("a stream failed")
            yield self._failed(from_quire(error))
        else:
            yield {"type": f"response.{self._status}", "response": self.response()}

    def _grow(self, delta: OutputDelta) -> Iterator[Event]:
        """Take what the engine gave; yields the events."""
        for choice in delta.choices:
            parsed = self._parser.push(choice.text)
            self._num_output += len(choice.token_ids)
            if parsed.reasoning and not self._is_answering:
                self._num_reasoning = self._num_output
            yield from self._add(parsed)
            if choice.finish_reason is not None:
                self._status = "incomplete" if choice.finish_reason == "length" else "completed"
        if delta.metrics is not None and self._tells_cached:
            self._num_cached = delta.metrics.num_cached_tokens
        if delta.finished:
            yield from self._add(self._parser.flush())
            yield from self._items.finish(self._status)

    def _add(self, parsed: ParsedText) -> Iterator[Event]:
        self._is_answering = self._is_answering or bool(parsed.content or parsed.tool_calls)
        return self._items.add(parsed)

    def _failed(self, error: ApiError) -> Event:
        told = {"code": "server_error", "message": error.message}
        response = self._fields | {"status": "failed", "error": told, "output": self._items.items}
        return {"type": "response.failed", "response": response}


def _fields(body: ResponsesRequest, state: ServerState, request: EngineRequest) -> dict[str, Any]:
    """What all states of a response tell: itself as it begins, and what was asked for."""
    params = request.params
    return {
        "id": request.request_id,
        "object": "response",
        "created_at": time.time(),
        "completed_at": None,
        "status": "in_progress",
        "model": state.model_names[0],
        "output": [],
        "usage": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": params.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": [{"strict": None, "parameters": None, **tool.model_dump()} for tool in body.tools or ()],
        "top_logprobs": 0,
        "top_p": params.top_p,
        "truncation": "disabled",
        "user": body.user,
    }


def _encoded(event: Event) -> bytes:
    name: str = event["type"]
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"
