"""`/tokenize` and `/detokenize`, as vLLM has them."""

from __future__ import annotations

import asyncio
from typing import Annotated

import orjson
from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.responses import Response

from quire_serving.chat_prompt import render_chat
from quire_serving.errors import ApiError
from quire_serving.json_body import JsonRoute
from quire_serving.protocol.chat import ChatMessage, ChatRequest, TemplateValues, Tool
from quire_serving.protocol.common import RequestModel, ResponseModel, check_model, conflict
from quire_serving.protocol.fields import INTEGRAL
from quire_serving.protocol.limits import ModelName, TokenId
from quire_serving.state import ServerState, server_of
from quire_serving.submission import decode, tokenize, tokenizer_of

router = APIRouter(tags=["tokenizer"], route_class=JsonRoute)
State = Annotated[ServerState, Depends(server_of)]


class TokenizeRequest(RequestModel):
    """A prompt, or a conversation: exactly one of the two.

    Attributes:
        add_special_tokens: by default with a prompt; a chat template writes them itself.
        return_token_strs: tell how the vocabulary spells each token.
        add_generation_prompt, continue_final_message, tools, chat_template_kwargs: with messages only.
    """

    model: ModelName | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096, fail_fast=True)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None
    chat_template_kwargs: TemplateValues | None = None


class TokenizeAnswer(ResponseModel):
    """The tokens of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(RequestModel):
    """Token ids."""

    model: ModelName | None = None
    tokens: Annotated[list[TokenId], Field(max_length=2**20, fail_fast=True), INTEGRAL]


class DetokenizeAnswer(ResponseModel):
    """The text of the tokens, special ones included."""

    prompt: str


@router.post("/tokenize", response_model=TokenizeAnswer)
async def tokenize_text(body: TokenizeRequest, state: State) -> Response:
    """The tokens that a prompt or a conversation has."""
    check_model(state, body.model)
    if body.messages is None and body.prompt is not None:
        special = body.add_special_tokens is not False
        tokens = await tokenize(state, body.prompt, add_special_tokens=special)
    elif body.messages is not None and body.prompt is None:
        tokens = await _tokenize_chat(body, state)
    else:
        raise conflict("give either prompt or messages", "prompt")
    return await asyncio.to_thread(_answer, body, state, tokens)


def _answer(body: TokenizeRequest, state: ServerState, tokens: list[int]) -> Response:
    """In a thread: tokens may be very many."""
    tokenizer = tokenizer_of(state)
    pieces = [tokenizer.id_to_piece(token) or "" for token in tokens] if body.return_token_strs else None
    answer = {
        "count": len(tokens),
        "max_model_len": state.client.description.max_model_len,
        "tokens": tokens,
        "token_strs": pieces,
    }
    return Response(orjson.dumps(answer), media_type="application/json")


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, state: State) -> DetokenizeAnswer:
    """The text that tokens stand for."""
    check_model(state, body.model)
    width = state.client.description.vocab_size
    highest = max(body.tokens, default=0)
    if highest >= width:
        raise ApiError(400, "invalid_prompt", f"token id {highest} is not below {width}", "tokens")
    return DetokenizeAnswer(prompt=await decode(state, body.tokens))


async def _tokenize_chat(body: TokenizeRequest, state: ServerState) -> list[int]:
    chat = ChatRequest(
        messages=body.messages or [],
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        tools=body.tools,
        chat_template_kwargs=body.chat_template_kwargs,
    )
    text = await render_chat(state, chat, [tool.model_dump(exclude_unset=True) for tool in body.tools or ()])
    return await tokenize(state, text, add_special_tokens=bool(body.add_special_tokens))
