"""/v1/chat/completions: its request and its responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from quire_serving.errors import ApiError
from quire_serving.protocol.common import PromptLogprobs, RequestModel, ResponseModel, Usage
from quire_serving.protocol.fields import METADATA_KEYS, Keys, Natural, Positive
from quire_serving.protocol.limits import ModelName, NumLogprobs
from quire_serving.protocol.sampling import StreamFields
from quire_serving.protocol.unserved import RESPONSE_FORMAT, TOOL_CHOICE, Unserved

ToolName = Annotated[str, Field(pattern="^[a-zA-Z0-9_.-]{1,64}$")]
TemplateValues = Annotated[dict[str, Any], Keys("^[A-Za-z_][A-Za-z0-9_]{0,63}$", 64)]


def _text_only(kind: object) -> object:
    if kind != "text" and isinstance(kind, str):
        message = f"a content part of type {kind[:64]!r} is not served: the model reads text parts only"
        raise ApiError(400, "content_type_unsupported", message, "messages")
    return kind


class Part(RequestModel):
    """Part of a conversation: clients send back what other servers added to it, so unknown fields are passed over."""

    model_config = ConfigDict(extra="ignore")


class ContentPart(Part):
    """A part of a message's content; only texts are served."""

    type: Annotated[Literal["text"], BeforeValidator(_text_only)]
    text: str


class FunctionCall(Part):
    """What an assistant called: a name, and arguments as JSON text."""

    name: ToolName
    arguments: str


class ToolCall(Part):
    """A call that an assistant made earlier in the conversation."""

    id: str = Field(max_length=256)
    type: Literal["function"] = "function"
    function: FunctionCall
    index: Natural | None = None


class ChatMessage(Part):
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


class Function(Part):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Part):
    """What the model may call."""

    type: Literal["function"]
    function: Function


class ChatRequest(StreamFields):
    """A conversation to go on with.

    Attributes:
        max_completion_tokens: and its older name `max_tokens`; by default what the context leaves.
        logprobs, top_logprobs: of the tokens of the answer, and so many of the likeliest at each place.
        add_generation_prompt: let the template begin an assistant's turn.
        continue_final_message: go on with the last message instead of a new one.
        add_special_tokens: put BOS and EOS around the rendered conversation, too.
        chat_template_kwargs: what the template reads besides.
        tool_choice: "auto" or "none".
        metadata, store, service_tier, prompt_cache_*, safety_identifier, prediction: taken and not used.
    """

    model: ModelName | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096, fail_fast=True)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Annotated[Literal["none", "auto"] | None, TOOL_CHOICE] = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    include_reasoning: bool = True
    reasoning_effort: str | None = Field(None, max_length=32)
    chat_template_kwargs: TemplateValues | None = None
    metadata: Annotated[dict[str, Any], METADATA_KEYS] | None = None
    prediction: dict[str, Any] | None = None
    prompt_cache_key: str | None = Field(None, max_length=256)
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    safety_identifier: str | None = Field(None, max_length=256)
    service_tier: str | None = Field(None, max_length=64)
    store: bool | None = None
    audio: Annotated[Any, Unserved("the model writes text: leave it out")] = None
    chat_template: Annotated[
        Any, Unserved("start the server with --chat-template", code="chat_template_refused")
    ] = None
    documents: Annotated[Any, Unserved("give their text in the messages")] = None
    echo: Annotated[Any, Unserved("ask /v1/completions", (False,))] = None
    function_call: Annotated[Any, Unserved("it is called tool_choice now", ("auto", "none"))] = None
    functions: Annotated[Any, Unserved("they are called tools now")] = None
    media_io_kwargs: Annotated[Any, Unserved("the model reads text: leave it out")] = None
    mm_processor_kwargs: Annotated[Any, Unserved("the model reads text: leave it out")] = None
    modalities: Annotated[Any, Unserved("the model writes text: leave it out", (["text"],))] = None
    moderation: Annotated[Any, Unserved("check the answer yourself")] = None
    response_format: Annotated[Any, RESPONSE_FORMAT] = None
    verbosity: Annotated[Any, Unserved("ask for it in the messages", ("medium",))] = None
    web_search_options: Annotated[Any, Unserved("nothing is searched: leave it out", takes_empty=False)] = (
        None
    )


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
    """The answer; as a stream, events of chunks.

    Attributes:
        system_fingerprint: of the plugins that can change outputs.
    """

    id: str
    object: Literal["chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChoice]
    system_fingerprint: str
    service_tier: Literal["default"] | None = None
    usage: Usage | None = None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
