"""`/tokenize` and `/detokenize`, as vLLM has them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field

from quire.api.errors import QuireError
from quire_serving.chat_prompt import render_chat
from quire_serving.errors import ApiError, from_quire
from quire_serving.protocol.chat import ChatMessage, ChatRequest, Tool
from quire_serving.protocol.common import RequestModel, ResponseModel, TokenId, check_model
from quire_serving.state import ServerState, server_of
from quire_serving.submission import tokenize, tokenizer_of

router = APIRouter(tags=["tokenizer"])
State = Annotated[ServerState, Depends(server_of)]


class TokenizeRequest(RequestModel):
    """A prompt, or a conversation: exactly one of the two.

    Attributes:
        add_special_tokens: by default with a prompt; a chat template writes them itself.
        return_token_strs: tell how the vocabulary spells each token.
        add_generation_prompt, continue_final_message, tools, chat_template_kwargs: with messages only.
    """

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096, fail_fast=True)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeAnswer(ResponseModel):
    """The tokens of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(RequestModel):
    """Token ids."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=2**20, fail_fast=True)]


class DetokenizeAnswer(ResponseModel):
    """The text of the tokens, special ones included."""

    prompt: str


@router.post("/tokenize")
async def tokenize_text(body: TokenizeRequest, state: State) -> TokenizeAnswer:
    """The tokens that a prompt or a conversation has."""
    check_model(state, body.model)
    if body.messages is None and body.prompt is not None:
        special = body.add_special_tokens is not False
        tokens = await tokenize(state, body.prompt, add_special_tokens=special)
    elif body.messages is not None and body.prompt is None:
        tokens = await _tokenize_chat(body, state)
    else:
        raise ApiError(400, "invalid_request", "give either prompt or messages", "prompt")
    tokenizer = tokenizer_of(state)
    return TokenizeAnswer(
        count=len(tokens),
        max_model_len=state.client.description.max_model_len,
        tokens=tokens,
        token_strs=[tokenizer.id_to_piece(token) or "" for token in tokens]
        if body.return_token_strs
        else None,
    )


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, state: State) -> DetokenizeAnswer:
    """The text that tokens stand for."""
    check_model(state, body.model)
    tokenizer = tokenizer_of(state)
    width = state.client.description.vocab_size
    unknown = next((token for token in body.tokens if token >= width), None)
    if unknown is not None:
        raise ApiError(400, "invalid_prompt", f"token id {unknown} is not below {width}", "tokens")
    try:
        text = await asyncio.to_thread(tokenizer.decode, body.tokens, skip_special_tokens=False)
    except QuireError as error:
        raise from_quire(error) from error
    return DetokenizeAnswer(prompt=text)


async def _tokenize_chat(body: TokenizeRequest, state: ServerState) -> list[int]:
    chat = ChatRequest(
        messages=body.messages or [],
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        tools=body.tools,
        chat_template_kwargs=body.chat_template_kwargs,
    )
    text = await render_chat(state, chat, has_tools=bool(body.tools))
    return await tokenize(state, text, add_special_tokens=bool(body.add_special_tokens))
