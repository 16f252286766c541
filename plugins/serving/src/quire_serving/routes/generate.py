"""/generate, the endpoint of vLLM's first demonstration server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Request
from fastapi.routing import APIRoute
from pydantic import Field
from starlette.responses import Response

from quire.api.client import EngineRequest
from quire.api.outputs import OutputDelta
from quire_serving.protocol.common import ResponseModel
from quire_serving.protocol.sampling import SamplingFields
from quire_serving.state import ServerState, server_of
from quire_serving.submission import (
    DONE,
    EventStream,
    Submission,
    event,
    new_request_id,
    salt_of,
    tokenize,
)

DEFAULT_MAX_TOKENS = 16


class AnyTypeRoute(APIRoute):
    """Reads bodies as JSON whatever their Content-Type: `curl -d` says that it sends a form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            headers = [item for item in request.scope["headers"] if item[0] != b"content-type"]
            scope = {**request.scope, "headers": [*headers, (b"content-type", b"application/json")]}
            return await handle(Request(scope, request.receive))

        return handle_json


router = APIRouter(tags=["generation"], route_class=AnyTypeRoute)


class GenerateRequest(SamplingFields):
    """A prompt, and how its tokens are chosen."""

    prompt: str
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    stream: bool | None = None


class GenerateResponse(ResponseModel):
    """The prompt with each of its continuations."""

    text: list[str]


@router.post(
    "/generate",
    summary="Go on with a text (vLLM's old demonstration API)",
    response_model=None,
    responses={200: {"model": GenerateResponse, "content": {"text/event-stream": {}}}},
)
async def generate(
    body: GenerateRequest, http_request: Request, state: Annotated[ServerState, Depends(server_of)]
) -> Response:
    """Complete a prompt. As a stream, server-sent events hold what there is so far, then comes [DONE]."""
    params = body.sampling_params(
        state, max_tokens=body.max_tokens, default_max_tokens=DEFAULT_MAX_TOKENS, logprobs=None
    )
    token_ids = await tokenize(state, body.prompt)
    salt = salt_of(http_request, body.cache_salt)
    request = EngineRequest(new_request_id("gen"), token_ids, params, body.prompt, body.priority, salt)
    texts = [body.prompt] * params.n
    submission = Submission(state, http_request, [request])
    if body.stream:
        await submission.start()
        return EventStream(submission, _events(submission, texts))
    async with submission:
        async for _, delta in submission:
            _add(texts, delta)
    return Response(orjson.dumps({"text": texts}), media_type="application/json")


async def _events(submission: Submission, texts: list[str]) -> AsyncGenerator[bytes, None]:
    async for _, delta in submission:
        if _add(texts, delta):
            yield event({"text": texts})
    yield DONE


def _add(texts: list[str], delta: OutputDelta) -> bool:
    """Whether the texts have grown."""
    for part in delta.choices:
        texts[part.index] += part.text
    return any(part.text for part in delta.choices)
