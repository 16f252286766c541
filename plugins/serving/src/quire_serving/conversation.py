"""Items of /v1/responses as a conversation of /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from quire_serving.errors import ApiError
from quire_serving.protocol.chat import ChatMessage, ChatRequest, Function, FunctionCall, Tool, ToolCall
from quire_serving.protocol.common import conflict
from quire_serving.protocol.responses import (
    FunctionCallItem,
    FunctionOutputItem,
    MessageItem,
    ResponsesRequest,
    TextPart,
)


def chat_request_of(body: ResponsesRequest) -> ChatRequest:
    """The conversation and its tools, for the chat template; ApiError where it is none."""
    tools = [
        Tool(type="function", function=Function(**tool.model_dump(exclude={"type"}, exclude_none=True)))
        for tool in body.tools or ()
    ]
    try:
        messages = _messages(body)
        if not messages:
            raise conflict("the input holds reasoning only: give a message too", "input")
        return ChatRequest(messages=messages, tools=tools, tool_choice=body.tool_choice)
    except ValidationError as error:  # such as too many calls that follow each other
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ApiError(400, "invalid_request", f"the input as {place}: {first['msg']}", "input") from None


def _messages(body: ResponsesRequest) -> list[ChatMessage]:
    """Calls that follow each other are one message; reasoning is left out."""
    messages: list[ChatMessage] = []
    if body.instructions is not None:
        messages.append(ChatMessage(role="system", content=body.instructions))
    if isinstance(body.input, str):
        return [*messages, ChatMessage(role="user", content=body.input)]
    calls: list[ToolCall] = []
    for item in body.input:
        if isinstance(item, FunctionCallItem):
            function = FunctionCall(name=item.name, arguments=item.arguments)
            calls.append(ToolCall(id=item.call_id, function=function))
            continue
        if calls:
            messages.append(ChatMessage(role="assistant", tool_calls=calls))
            calls = []
        if isinstance(item, MessageItem):
            messages.append(ChatMessage(role=item.role, content=_text(item.content)))
        elif isinstance(item, FunctionOutputItem):
            messages.append(ChatMessage(role="tool", tool_call_id=item.call_id, content=_text(item.output)))
    if calls:
        messages.append(ChatMessage(role="assistant", tool_calls=calls))
    return messages


def _text(content: str | Sequence[TextPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)
