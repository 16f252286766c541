"""/v1/responses."""

from __future__ import annotations

from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from quire.api.client import EngineRequest
from quire_serving.chat_prompt import render_chat
from quire_serving.conversation import chat_request_of
from quire_serving.errors import ApiError
from quire_serving.parsers.answer import answer_parser
from quire_serving.protocol.common import check_model
from quire_serving.protocol.responses import ResponsesRequest, ResponsesResponse
from quire_serving.response_answer import ResponseAnswer
from quire_serving.state import ServerState, server_of
from quire_serving.submission import EventStream, Submission, new_request_id, salt_of, tokenize

router = APIRouter(tags=["generation"])


@router.post(
    "/v1/responses",
    summary="Go on with a conversation, as items",
    response_model=None,
    responses={200: {"model": ResponsesResponse, "content": {"text/event-stream": {}}}},
)
async def create_response(
    body: ResponsesRequest, http_request: Request, state: Annotated[ServerState, Depends(server_of)]
) -> Response:
    """Answer, as OpenAI's endpoint of this name does; nothing is stored."""
    check_model(state, body.model)
    body.refuse_unserved()
    if body.stream_options is not None and not body.stream:
        raise ApiError(
            400, "invalid_request", "stream_options need stream=true: add it, or drop them", "stream_options"
        )
    conversation = chat_request_of(body)
    tools = conversation.tools if conversation.tools and body.tool_choice != "none" else []
    parser = answer_parser(state, [tool.model_dump(exclude_none=True) for tool in tools])
    params = body.sampling_params(
        state, max_tokens=body.max_output_tokens, default_max_tokens=None, logprobs=None
    )
    text = await render_chat(state, conversation, has_tools=bool(tools))
    request = EngineRequest(
        new_request_id("resp"),
        await tokenize(state, text, add_special_tokens=False),
        params,
        text,
        body.priority,
        salt_of(http_request, body.cache_salt),
    )
    answer = ResponseAnswer(body, state, request, parser)
    submission = Submission(state, http_request, [request])
    if body.stream:
        await submission.start()
        return EventStream(submission, answer.events(submission))
    async with submission:
        async for _, delta in submission:
            for _event in answer.add(delta):
                pass
    return Response(orjson.dumps(answer.body()), media_type="application/json")
