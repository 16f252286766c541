"""/v1/chat/completions."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from quire import SamplingParams
from quire.api.client import EngineRequest
from quire_serving.chat_answer import ChatAnswer
from quire_serving.chat_prompt import render_chat
from quire_serving.errors import ApiError
from quire_serving.parsers.answer import answer_parser
from quire_serving.protocol.chat import ChatRequest, ChatResponse, NamedToolChoice
from quire_serving.protocol.common import check_model
from quire_serving.state import ServerState, server_of
from quire_serving.submission import EventStream, Submission, new_request_id, salt_of, tokenize

router = APIRouter(tags=["generation"])


@router.post(
    "/v1/chat/completions",
    summary="Answer in a conversation",
    response_model=None,
    responses={200: {"model": ChatResponse, "content": {"text/event-stream": {}}}},
)
async def create_chat_completion(
    body: ChatRequest, http_request: Request, state: Annotated[ServerState, Depends(server_of)]
) -> Response:
    """Answer the last message of a conversation, as OpenAI's endpoint of this name does."""
    check_model(state, body.model)
    params = _params(body, state)
    calls_tools = _calls_tools(body, state)
    text = await render_chat(state, body, has_tools=bool(body.tools) and body.tool_choice != "none")
    token_ids = await tokenize(state, text, add_special_tokens=body.add_special_tokens)
    salt = salt_of(http_request, body.cache_salt)
    request = EngineRequest(new_request_id("chatcmpl"), token_ids, params, text, body.priority, salt)
    tools = [tool.model_dump(exclude_unset=True) for tool in body.tools or ()] if calls_tools else []
    answer = ChatAnswer(body, state, request, partial(answer_parser, state, tools))
    submission = Submission(state, http_request, [request])
    if body.stream:
        await submission.start()
        return EventStream(submission, answer.events(submission))
    async with submission:
        async for _, delta in submission:
            answer.add(delta)
    return Response(orjson.dumps(answer.response()), media_type="application/json")


def _params(body: ChatRequest, state: ServerState) -> SamplingParams:
    """What the engine is asked for; ApiError where fields contradict each other, or are not served."""
    if body.response_format is not None and body.response_format.type != "text":
        raise ApiError(
            400,
            "response_format_unsupported",
            f"response_format {body.response_format.type!r} is not served by this version: check the output and "
            "ask again, or leave it out",
            "response_format",
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise _contradiction("top_logprobs needs logprobs=true: add it, or leave it out", "top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise _contradiction("stream_options need stream=true: add it, or drop them", "stream_options")
    if body.stream and body.prompt_logprobs is not None:
        raise _contradiction("prompt_logprobs are not streamed: drop stream", "prompt_logprobs")
    wants_prompt = body.add_generation_prompt and "add_generation_prompt" in body.model_fields_set
    if body.continue_final_message and wants_prompt:
        raise _contradiction(
            "continue_final_message and add_generation_prompt exclude each other: choose one",
            "continue_final_message",
        )
    given = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return body.sampling_params(
        state,
        max_tokens=given,
        default_max_tokens=None,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def _calls_tools(body: ChatRequest, state: ServerState) -> bool:
    """Whether calls are looked for in the answer; ApiError where that is asked for and cannot be."""
    choice = body.tool_choice
    if isinstance(choice, NamedToolChoice) or choice == "required":
        raise ApiError(
            400,
            "tool_choice_unsupported",
            "a tool_choice that forces a call needs grammars, which this version has not: use auto or none",
            "tool_choice",
        )
    if not body.tools or choice == "none":
        return False
    settings = state.settings
    if not settings.enable_auto_tool_choice:
        return False
    if settings.tool_call_parser is None:
        raise ApiError(
            400,
            "tool_parser_missing",
            'tool_choice "auto" needs a parser of calls: start the server with --tool-call-parser, or use "none"',
            "tool_choice",
        )
    return True


def _contradiction(message: str, param: str) -> ApiError:
    return ApiError(400, "invalid_request", message, param)
