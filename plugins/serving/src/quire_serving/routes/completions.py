"""/v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, cast

import orjson
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from quire import SamplingParams
from quire.api.client import EngineRequest
from quire_serving.completion_answer import CompletionAnswer
from quire_serving.errors import ApiError
from quire_serving.protocol.common import check_model
from quire_serving.protocol.completions import CompletionRequest, CompletionResponse
from quire_serving.state import ServerState, server_of
from quire_serving.submission import EventStream, Submission, new_request_id, salt_of, tokenize, tokenizer_of

router = APIRouter(tags=["generation"])
DEFAULT_MAX_TOKENS = 16


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
    submission = Submission(state, http_request, requests)
    if body.stream:
        await submission.start()
        return EventStream(submission, answer.events(submission))
    async with submission:
        async for index, delta in submission:
            answer.add(index, delta)
    return Response(orjson.dumps(answer.response()), media_type="application/json")


def _params(body: CompletionRequest, state: ServerState) -> SamplingParams:
    """What the engine is asked for; ApiError where fields contradict each other."""
    if body.suffix:
        raise ApiError(
            400, "suffix_unsupported", "suffix is not served: the model only goes on with a text", "suffix"
        )
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError(
            400,
            "best_of_unsupported",
            f"best_of={body.best_of} with n={body.n or 1} is not served: ask for n choices, and keep the best "
            "by their logprobs",
            "best_of",
        )
    if body.stream_options is not None and not body.stream:
        raise ApiError(
            400, "invalid_request", "stream_options need stream=true: add it, or drop them", "stream_options"
        )
    if body.stream and body.prompt_logprobs is not None:
        raise ApiError(
            400,
            "invalid_request",
            "prompt_logprobs are not streamed: drop stream, or use echo with logprobs",
            "prompt_logprobs",
        )
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(
            400, "invalid_sampling_params", "max_tokens=0 needs echo=true: ask for at least 1", "max_tokens"
        )
    params = body.sampling_params(
        state,
        max_tokens=None if body.max_tokens is None else max(body.max_tokens, 1),
        default_max_tokens=DEFAULT_MAX_TOKENS,
        logprobs=body.logprobs,
    )
    if body.echo and body.logprobs is not None:
        wanted = max(body.logprobs, body.prompt_logprobs or 0)
        params = replace(params, prompt_logprobs=wanted)
    return params


async def _prompts(body: CompletionRequest, state: ServerState) -> list[tuple[str | None, Sequence[int]]]:
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
    pairs: list[tuple[str | None, Sequence[int]]] = []
    for each in prompts:
        if isinstance(each, str):
            pairs.append((each, await tokenize(state, each, add_special_tokens=body.add_special_tokens)))
        else:
            text = tokenizer_of(state).decode(each, skip_special_tokens=False) if body.echo else None
            pairs.append((text, each))
    return pairs
