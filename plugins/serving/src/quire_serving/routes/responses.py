"""/v1/responses."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from quire_serving.conversation import chat_request_of
from quire_serving.json_body import AnyTypeRoute
from quire_serving.protocol.common import check_model
from quire_serving.protocol.responses import ResponsesRequest, ResponsesResponse
from quire_serving.response_answer import ResponseAnswer
from quire_serving.routes.answering import Conversation, answered
from quire_serving.state import ServerState, server_of
from quire_serving.submission import Submission

router = APIRouter(tags=["generation"], route_class=AnyTypeRoute)


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
    body.check_stream()
    params = body.sampling_params(state, max_tokens=body.max_output_tokens, default_max_tokens=None)
    conversation = Conversation(chat_request_of(body), state)
    request = await conversation.request(http_request, "resp", body, params)
    answer = ResponseAnswer(body, state, request, conversation.new_parser())
    return await answered(answer, Submission(state, http_request, [request]), is_stream=bool(body.stream))
