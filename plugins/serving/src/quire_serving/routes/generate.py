"""/generate, the endpoint of vLLM's first demonstration server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from quire.api.client import EngineRequest
from quire.api.outputs import OutputDelta
from quire_serving.json_body import AnyTypeRoute
from quire_serving.protocol.common import ResponseModel
from quire_serving.protocol.fields import Positive
from quire_serving.protocol.sampling import SamplingFields
from quire_serving.routes.answering import answered
from quire_serving.state import ServerState, server_of
from quire_serving.submission import DONE, Submission, event, new_request_id, salt_of, tokenize

DEFAULT_MAX_TOKENS = 16
router = APIRouter(tags=["generation"], route_class=AnyTypeRoute)


class GenerateRequest(SamplingFields):
    """A prompt, and how its tokens are chosen."""

    prompt: str
    max_tokens: Positive | None = None
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
    params = body.sampling_params(state, max_tokens=body.max_tokens, default_max_tokens=DEFAULT_MAX_TOKENS)
    token_ids = await tokenize(state, body.prompt)
    salt = salt_of(http_request, body.cache_salt)
    request = EngineRequest(new_request_id("gen"), token_ids, params, body.prompt, body.priority, salt)
    answer = GenerateAnswer([body.prompt] * params.n)
    return await answered(answer, Submission(state, http_request, [request]), is_stream=bool(body.stream))


class GenerateAnswer:
    """The texts so far; an Answer. They begin with the prompt."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    def add(self, index: int, delta: OutputDelta) -> None:
        """See Answer."""
        del index  # there is one request
        for part in delta.choices:
            self._texts[part.index] += part.text

    def response(self) -> dict[str, object]:
        """See Answer."""
        return {"text": self._texts}

    async def events(self, submission: Submission) -> AsyncGenerator[bytes, None]:
        """Each tells all there is so far."""
        async for index, delta in submission:
            self.add(index, delta)
            if any(part.text for part in delta.choices):
                yield event(self.response())
        yield DONE
