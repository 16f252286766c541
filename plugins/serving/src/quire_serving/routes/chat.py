"""/v1/chat/completions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from quire import SamplingParams
from quire_serving.chat_answer import ChatAnswer
from quire_serving.json_body import AnyTypeRoute
from quire_serving.protocol.chat import ChatRequest, ChatResponse
from quire_serving.protocol.common import check_model, conflict
from quire_serving.protocol.sampling import check_limit
from quire_serving.routes.answering import Conversation, answered
from quire_serving.state import ServerState, server_of
from quire_serving.submission import Submission

router = APIRouter(tags=["generation"], route_class=AnyTypeRoute)


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
    conversation = Conversation(body, state)
    request = await conversation.request(http_request, "chatcmpl", body, params)
    answer = ChatAnswer(body, state, request, conversation.new_parser)
    return await answered(answer, Submission(state, http_request, [request]), is_stream=bool(body.stream))


def _params(body: ChatRequest, state: ServerState) -> SamplingParams:
    """What the engine is asked for; ApiError where fields contradict each other."""
    body.check_stream()
    if body.top_logprobs and not body.logprobs:
        raise conflict("top_logprobs need logprobs=true: add it, or leave them out", "top_logprobs")
    check_limit("top_logprobs", body.top_logprobs, state.settings.max_logprobs, "--max-logprobs")
    wants_prompt = body.add_generation_prompt and "add_generation_prompt" in body.model_fields_set
    if body.continue_final_message and wants_prompt:
        message = "continue_final_message and add_generation_prompt exclude each other: choose one"
        raise conflict(message, "continue_final_message")
    return body.sampling_params(
        state,
        max_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        default_max_tokens=None,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
    )
