"""/v1/responses: its request, and the items of a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from quire_serving.errors import ApiError
from quire_serving.protocol.chat import ToolName
from quire_serving.protocol.common import RequestModel, ResponseModel, StreamOptions
from quire_serving.protocol.sampling import SamplingFields

Status = Literal["in_progress", "completed", "incomplete"]
_NEUTRAL_ONLY = Field(default=None, description="not served: only values that ask for nothing are accepted")

# What asks for nothing, besides null; and what to do instead of asking.
_REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "background": ((False,), "stream the response"),
    "context_management": (([],), "leave it out, and give a shorter conversation"),
    "conversation": ((), "nothing is stored here: give the whole conversation as input"),
    "include": (([],), "leave it out"),
    "max_tool_calls": ((), "leave it out"),
    "n": ((1,), "ask once for each response"),
    "previous_response_id": ((), "nothing is stored here: give the whole conversation as input"),
    "prompt": ((), "stored prompts are OpenAI's own: give instructions and input"),
    "reasoning": (({}, {"effort": None}, {"effort": None, "summary": None}), "leave it out"),
    "text": (({}, {"format": {"type": "text"}}), "check the output and ask again, or leave it out"),
    "top_logprobs": ((0,), "ask /v1/chat/completions"),
    "truncation": (("disabled",), "give a shorter conversation"),
}


class TextPart(RequestModel):
    """A part of a message's content; annotations and log-probabilities of earlier answers are taken, and not used."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


def _text_or_list(value: object) -> str:
    return "text" if isinstance(value, str) else "list"


# Told apart by their kind, so that errors are about the one that was meant.
TextContent = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[TextPart], Field(max_length=1024, fail_fast=True), Tag("list")],
    Discriminator(_text_or_list),
]


class MessageItem(RequestModel):
    """What somebody said; `developer` is `system` to the model's template."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: TextContent
    id: str | None = None
    status: Status | None = None
    phase: str | None = None


class FunctionCallItem(RequestModel):
    """A call that the model made before; `arguments` is the text of a JSON object."""

    type: Literal["function_call"]
    call_id: str = Field(max_length=256)
    name: ToolName
    arguments: str
    id: str | None = None
    status: Status | None = None


class FunctionOutputItem(RequestModel):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str = Field(max_length=256)
    output: TextContent
    id: str | None = None
    status: Status | None = None


class ReasoningItem(RequestModel):
    """What the model thought before; it is not shown to it again."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[Any] | None = None
    content: list[Any] | None = None
    encrypted_content: str | None = None
    status: Status | None = None


def _type_of(item: object) -> str:
    kind = item.get("type", "message") if isinstance(item, Mapping) else getattr(item, "type", "message")
    return str(kind)


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        _type_of,
        custom_error_type="item_type",
        custom_error_message="the item's type must be message, function_call, function_call_output or reasoning",
    ),
]
Input = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[InputItem], Field(min_length=1, max_length=4096, fail_fast=True), Tag("list")],
    Discriminator(_text_or_list),
]


class FunctionTool(RequestModel):
    """A function that the model may call."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponsesRequest(SamplingFields):
    """A conversation to go on with.

    Attributes:
        input: what the user says, or the items of the conversation.
        instructions: the system's message before it.
        store: taken; nothing is stored, whatever it says.
        tool_choice: "auto" or "none".
    """

    model: str | None = Field(None, max_length=512)
    input: Input
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = Field(None, max_length=512)
    safety_identifier: str | None = Field(None, max_length=512)
    service_tier: Literal["auto", "default"] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["auto", "none", "required"] | dict[str, Any] | None = None
    background: Any = _NEUTRAL_ONLY
    context_management: Any = _NEUTRAL_ONLY
    conversation: Any = _NEUTRAL_ONLY
    include: Any = _NEUTRAL_ONLY
    max_tool_calls: Any = _NEUTRAL_ONLY
    previous_response_id: Any = _NEUTRAL_ONLY
    prompt: Any = _NEUTRAL_ONLY
    reasoning: Any = _NEUTRAL_ONLY
    text: Any = _NEUTRAL_ONLY
    top_logprobs: Any = _NEUTRAL_ONLY
    truncation: Any = _NEUTRAL_ONLY

    def refuse_unserved(self) -> None:
        """Raise ApiError where a field asks for what is not served."""
        for name, (neutral, remedy) in _REFUSED.items():
            value = getattr(self, name)
            if value is not None and not any(value == each for each in neutral):
                raise ApiError(
                    400, "unsupported_parameter", f"{name} is not served by this version: {remedy}", name
                )
        if self.tool_choice not in (None, "auto", "none"):
            raise ApiError(
                400,
                "unsupported_parameter",
                'tool_choice is served as "auto" or "none" by this version: ask for the call in the instructions',
                "tool_choice",
            )


class InputTokensDetails(ResponseModel):
    """Of the input's tokens, those taken from the prefix cache."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(ResponseModel):
    """Of the output's tokens, those of reasoning."""

    reasoning_tokens: int


class ResponsesUsage(ResponseModel):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponsesResponse(ResponseModel):
    """The answer, as OpenAI's `Response`; `output` holds messages, reasoning and function calls."""

    id: str
    object: Literal["response"]
    created_at: float
    completed_at: float | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[dict[str, Any]]
    usage: ResponsesUsage | None
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: dict[str, Any]
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str
    user: str | None
