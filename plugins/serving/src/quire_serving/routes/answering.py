"""What the endpoints that generate share: conversations as requests of the engine, answers whole or as streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

import orjson
from fastapi import Request
from starlette.responses import Response

from quire import SamplingParams
from quire.api.client import EngineRequest
from quire.api.outputs import OutputDelta
from quire.api.serving import TextParser
from quire_serving.chat_prompt import render_chat
from quire_serving.event_stream import EventStream
from quire_serving.parsers.answer import answer_parser
from quire_serving.protocol.chat import ChatRequest
from quire_serving.protocol.sampling import SamplingFields
from quire_serving.state import ServerState
from quire_serving.submission import Submission, new_request_id, salt_of, tokenize

MAX_LOGPROBS_ON_LOOP = 2000  # telling them takes some milliseconds


class Answer(Protocol):
    """What becomes of the engine's deltas: a response, or the events of a stream."""

    def add(self, index: int, delta: OutputDelta) -> None:
        """Take a delta of the request at `index`, for `response`."""
        ...

    def response(self) -> Mapping[str, object]:
        """The body of the response, when all deltas have come."""
        ...

    def events(self, submission: Submission) -> AsyncGenerator[bytes, None]:
        """The events of a stream."""
        ...


async def answered(answer: Answer, submission: Submission, *, is_stream: bool) -> Response:
    """The HTTP response; a stream's begins when the engine has given something."""
    if is_stream:
        await submission.start()
        return EventStream(submission, answer.events(submission))
    num_logprobs = 0
    async with submission:
        async for index, delta in submission:
            answer.add(index, delta)
            num_logprobs += _num_logprobs(delta, submission.requests[index].params.n)
    is_short = num_logprobs <= MAX_LOGPROBS_ON_LOOP
    body = _body(answer) if is_short else await asyncio.to_thread(_body, answer)
    return Response(body, media_type="application/json")


def _body(answer: Answer) -> bytes:
    return orjson.dumps(answer.response())


def _num_logprobs(delta: OutputDelta, n: int) -> int:
    """Those that a response tells of a delta; each of `n` choices may tell the prompt's."""
    count = sum(len(position or ()) for position in delta.prompt_logprobs or ()) * n
    return count + sum(len(position) for part in delta.choices for position in part.logprobs or ())


class Conversation:
    """A conversation on its way to the engine.

    Args:
        chat: the messages, their tools and how they are rendered.
        state: of the server.
    """

    def __init__(self, chat: ChatRequest, state: ServerState) -> None:
        given = [] if chat.tool_choice == "none" else chat.tools or ()
        self._chat = chat
        self._state = state
        self._tools = [tool.model_dump(exclude_unset=True) for tool in given]

    def new_parser(self) -> TextParser:
        """A parser of one choice; ApiError where there are tools to be called, and no parser of calls."""
        return answer_parser(self._state, self._tools if self._state.settings.enable_auto_tool_choice else ())

    async def request(
        self, http_request: Request, prefix: str, fields: SamplingFields, params: SamplingParams
    ) -> EngineRequest:
        """What the engine gets; `prefix` begins its id.

        Raises:
            ApiError: the conversation cannot be rendered, or is hopelessly long.
        """
        text = await render_chat(self._state, self._chat, self._tools)
        token_ids = await tokenize(self._state, text, add_special_tokens=self._chat.add_special_tokens)
        salt = salt_of(http_request, fields.cache_salt)
        return EngineRequest(new_request_id(prefix), token_ids, params, text, fields.priority, salt)
