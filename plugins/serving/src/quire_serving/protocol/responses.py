"""/v1/responses: its request, and the items of a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from quire_serving.protocol.chat import ToolName
from quire_serving.protocol.common import RequestModel, ResponseModel
from quire_serving.protocol.fields import METADATA_KEYS, Positive
from quire_serving.protocol.limits import ModelName
from quire_serving.protocol.sampling import StreamFields
from quire_serving.protocol.unserved import TOOL_CHOICE, Unserved

Status = Literal["in_progress", "completed", "incomplete"]
_LEAVE = "leave it out"
_GIVE_ALL = "nothing is stored here: give the whole conversation as input"
_NO_EFFORT: tuple[object, ...] = ({"effort": None}, {"effort": None, "summary": None})
_PLAIN: tuple[object, ...] = (
    {"format": {"type": "text"}},
    {"format": {"type": "text"}, "verbosity": "medium"},
    {"verbosity": "medium"},
)


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


class ResponsesRequest(StreamFields):
    """A conversation to go on with.

    Attributes:
        input: what the user says, or the items of the conversation.
        instructions: the system's message before it.
        store: taken; nothing is stored, whatever it says.
        tool_choice: "auto" or "none".
        service_tier, prompt_cache_*, safety_identifier: taken and not used.
    """

    model: ModelName | None = None
    input: Input
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    store: bool | None = None
    metadata: Annotated[dict[str, str], METADATA_KEYS] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = Field(None, max_length=512)
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    safety_identifier: str | None = Field(None, max_length=512)
    service_tier: str | None = Field(None, max_length=64)
    tools: Annotated[list[FunctionTool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Annotated[Literal["auto", "none"] | None, TOOL_CHOICE] = None
    access_programs: Annotated[Any, Unserved(_LEAVE)] = None
    background: Annotated[Any, Unserved("stream the response", (False,))] = None
    context_management: Annotated[Any, Unserved("give a shorter conversation")] = None
    conversation: Annotated[Any, Unserved(_GIVE_ALL)] = None
    image: Annotated[Any, Unserved(_LEAVE)] = None
    include: Annotated[Any, Unserved(_LEAVE)] = None
    max_tool_calls: Annotated[Any, Unserved(_LEAVE)] = None
    moderation: Annotated[Any, Unserved("check the answer yourself")] = None
    n: Annotated[Any, Unserved("ask once for each response", (1,), takes_empty=False)] = None
    previous_response_id: Annotated[Any, Unserved(_GIVE_ALL)] = None
    prompt: Annotated[Any, Unserved("stored prompts are OpenAI's: give instructions and input")] = None
    prompt_logprobs: Annotated[Any, Unserved("ask /v1/chat/completions")] = None
    reasoning: Annotated[Any, Unserved(_LEAVE, _NO_EFFORT)] = None
    return_token_ids: Annotated[Any, Unserved("ask /v1/chat/completions", (False,))] = None
    text: Annotated[Any, Unserved("check the output and ask again, or leave it out", _PLAIN)] = None
    top_logprobs: Annotated[Any, Unserved("ask /v1/chat/completions", (0,))] = None
    truncation: Annotated[Any, Unserved("give a shorter conversation", ("disabled",))] = None


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
