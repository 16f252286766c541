"""/v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from quire import SamplingParams
from quire.api.client import EngineRequest
from quire.api.errors import QuireError
from quire_serving.completion_answer import CompletionAnswer
from quire_serving.errors import ApiError, from_quire
from quire_serving.json_body import AnyTypeRoute
from quire_serving.protocol.common import check_model, conflict
from quire_serving.protocol.completions import CompletionRequest, CompletionResponse
from quire_serving.routes.answering import answered
from quire_serving.state import ServerState, server_of
from quire_serving.submission import MAX_CHARS_ON_LOOP, Submission, new_request_id, salt_of, tokenizer_of

router = APIRouter(tags=["generation"], route_class=AnyTypeRoute)
DEFAULT_MAX_TOKENS = 16
Prompt = tuple[str | None, Sequence[int]]


@router.post(
    "/v1/completions",
    summary="Go on with a text",
    response_model=None,
    responses={200: {"model": CompletionResponse, "content": {"text/event-stream": {}}}},
)
async def create_completion(
    body: CompletionRequest, http_request: Request, state: Annotated[ServerState, Depends(server_of)]
) -> Response:
    """Complete prompts, as OpenAI's endpoint of this name does."""
    check_model(state, body.model)
    answer_id = new_request_id("cmpl")
    params = _params(body, state)
    salt = salt_of(http_request, body.cache_salt)
    requests = [
        EngineRequest(f"{answer_id}-{index}", token_ids, params, text, body.priority, salt)
        for index, (text, token_ids) in enumerate(await _prompts(body, state))
    ]
    answer = CompletionAnswer(body, state, answer_id, requests)
    return await answered(answer, Submission(state, http_request, requests), is_stream=bool(body.stream))


def _params(body: CompletionRequest, state: ServerState) -> SamplingParams:
    """What the engine is asked for; ApiError where fields contradict each other."""
    body.check_stream()
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError(
            400,
            "best_of_unsupported",
            f"best_of={body.best_of} with n={body.n or 1} is not served: ask for n choices, and keep the best "
            "by their logprobs",
            "best_of",
        )
    if body.max_tokens == 0 and not body.echo:
        raise conflict("max_tokens=0 needs echo=true: ask for at least 1", "max_tokens")
    prompt_logprobs = body.prompt_logprobs
    if body.echo and body.logprobs is not None:
        prompt_logprobs = max(body.logprobs, prompt_logprobs or 0)
    return body.sampling_params(
        state,
        max_tokens=None if body.max_tokens is None else max(body.max_tokens, 1),
        default_max_tokens=DEFAULT_MAX_TOKENS,
        logprobs=body.logprobs,
        prompt_logprobs=prompt_logprobs,
    )


async def _prompts(body: CompletionRequest, state: ServerState) -> list[Prompt]:
    """Text, where there is one or it is echoed, and token ids of each prompt."""
    prompt = body.prompt
    is_single = isinstance(prompt, str) or (not prompt or isinstance(prompt[0], int))
    prompts = cast("list[str] | list[list[int]]", [prompt] if is_single else prompt)
    if len(prompts) > state.settings.max_prompts:
        raise ApiError(
            400,
            "too_many_prompts",
            f"{len(prompts)} prompts are over this server's limit of {state.settings.max_prompts}: send fewer "
            "in a request, or raise --max-prompts",
            "prompt",
        )
    size = 0
    for each in prompts:
        if isinstance(each, str):
            state.admission.check_size(len(each))
        else:
            state.admission.check_length(len(each))
        size += len(each) if isinstance(each, str) or body.echo else 0
    if size <= MAX_CHARS_ON_LOOP:
        return _pairs(prompts, body, state)
    with state.admission.arriving():
        return await asyncio.to_thread(_pairs, prompts, body, state)


def _pairs(prompts: Sequence[str | list[int]], body: CompletionRequest, state: ServerState) -> list[Prompt]:
    try:
        return [_pair(each, body, state) for each in prompts]
    except QuireError as error:
        raise from_quire(error) from error


def _pair(prompt: str | list[int], body: CompletionRequest, state: ServerState) -> Prompt:
    if isinstance(prompt, str):
        special = body.add_special_tokens
        return prompt, tokenizer_of(state).encode(prompt, add_special_tokens=special)
    text = tokenizer_of(state).decode(prompt, skip_special_tokens=False) if body.echo else None
    return text, prompt
