"""/v1/chat/completions: its request and its responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from quire_serving.protocol.common import (
    PromptLogprobs,
    RequestModel,
    ResponseModel,
    StreamOptions,
    Usage,
)
from quire_serving.protocol.sampling import SamplingFields

ToolName = Annotated[str, Field(pattern="^[a-zA-Z0-9_.-]{1,64}$")]


class ContentPart(RequestModel):
    """A part of a message's content; only those of type "text" are served."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(max_length=64)
    text: str | None = None


class FunctionCall(RequestModel):
    """What an assistant called: a name, and arguments as JSON text."""

    name: ToolName
    arguments: str


class ToolCall(RequestModel):
    """A call that an assistant made earlier in the conversation."""

    id: str = Field(max_length=256)
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = Field(None, ge=0, le=1024)


class ChatMessage(RequestModel):
    """A message; `reasoning_content` (or `reasoning`) is what an assistant thought before."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[ContentPart], Field(max_length=1024, fail_fast=True)] | None = None
    name: str | None = Field(None, max_length=256)
    tool_calls: Annotated[list[ToolCall], Field(max_length=128, fail_fast=True)] | None = None
    tool_call_id: str | None = Field(None, max_length=256)
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    audio: None = None
    annotations: Any = None
    function_call: None = None


class Function(RequestModel):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(RequestModel):
    """What the model may call."""

    type: Literal["function"]
    function: Function


class NamedFunction(RequestModel):
    """The name of a function."""

    name: ToolName


class NamedToolChoice(RequestModel):
    """That one function must be called."""

    type: Literal["function"]
    function: NamedFunction


class ResponseFormat(RequestModel):
    """The format of answers; only "text" is served."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(max_length=64)


class ChatRequest(SamplingFields):
    """A conversation to go on with.

    Attributes:
        max_completion_tokens: and its older name `max_tokens`; by default what the context leaves.
        logprobs, top_logprobs: of the tokens of the answer, and so many of the likeliest at each place.
        add_generation_prompt: let the template begin an assistant's turn.
        continue_final_message: go on with the last message instead of a new one.
        add_special_tokens: put BOS and EOS around the rendered conversation, too.
        chat_template: refused: templates are the operator's.
        chat_template_kwargs: what the template reads besides.
        metadata, store, service_tier, prompt_cache_key, safety_identifier: taken and not used.
    """

    model: str | None = Field(None, max_length=512)
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=16384, fail_fast=True)]
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=2**31 - 1)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    include_reasoning: bool = True
    reasoning_effort: str | None = Field(None, max_length=32)
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, max_length=64)
    metadata: dict[str, Any] | None = Field(None, max_length=64)
    store: bool | None = None
    service_tier: str | None = Field(None, max_length=64)
    prompt_cache_key: str | None = Field(None, max_length=256)
    safety_identifier: str | None = Field(None, max_length=256)


class TopLogprob(ResponseModel):
    """A token and its UTF-8 bytes."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer, and the likeliest at its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(ResponseModel):
    """One entry for each token of the answer."""

    content: list[TokenLogprob] | None
    refusal: None = None


class AnsweredFunctionCall(ResponseModel):
    """In a stream, `arguments` is what is new of them."""

    name: str | None = None
    arguments: str = ""


class AnsweredToolCall(ResponseModel):
    """A call that the model makes."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: AnsweredFunctionCall
    index: int | None = None


class AnsweredMessage(ResponseModel):
    """What the model says; in a stream, what is new."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: None = None
    tool_calls: list[AnsweredToolCall] | None = None


class ChatChoice(ResponseModel):
    """One answer; `delta` in streams, `message` otherwise."""

    index: int
    message: AnsweredMessage | None = None
    delta: AnsweredMessage | None = None
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatResponse(ResponseModel):
    """The answer; as a stream, events of chunks."""

    id: str
    object: Literal["chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
