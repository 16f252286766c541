"""From a conversation to the text that the model gets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from weakref import WeakKeyDictionary

import orjson

from quire.api.errors import QuireError
from quire.api.plain_data import NotPlainError, plain_copy
from quire_serving.errors import ApiError, from_quire
from quire_serving.protocol.chat import ChatMessage, ChatRequest, ContentPart
from quire_serving.protocol.common import conflict
from quire_serving.state import ServerState
from quire_serving.submission import tokenizer_of

MAX_TEMPLATE_THREADS = 8
MAX_TOOLS_BYTES = 2**16
_OWN_NAMES = frozenset(
    {
        "self",
        "messages",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "bos_token",
        "eos_token",
        "pad_token",
        "unk_token",
        "raise_exception",
        "strftime_now",
        "tokenize",
    }
)
_slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


async def render_chat(
    state: ServerState, body: ChatRequest, tools: Sequence[Mapping[str, object]] = ()
) -> str:
    """A conversation as text, to be tokenized without special tokens.

    Args:
        state: for the template.
        body: the conversation.
        tools: those of it that the model is told of.

    Raises:
        ApiError: there is no template, it refuses the conversation, or takes too long; a part of the
            request cannot be rendered.
    """
    tokenizer = tokenizer_of(state)
    template = state.client.description.chat_template
    if template is None and tokenizer.chat_template is None:
        raise ApiError(
            400,
            "chat_template_missing",
            "the model has no chat template: start the server with --chat-template, or use /v1/completions",
            "messages",
        )
    values = _values(body, tools)
    source = template if template is not None else tokenizer.chat_template
    messages = [plain_message(message, has_developer="developer" in str(source)) for message in body.messages]

    def render() -> str:
        return tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
            continue_final_message=body.continue_final_message,
            **values,
        )

    return await in_bounded_thread(render, state.settings.template_timeout_s)


async def in_bounded_thread(render: Callable[[], str], timeout_s: float) -> str:
    """Call something in a thread that is given up after a time.

    A thread cannot be ended: one that was given up goes on, and keeps its place among those allowed.
    """
    loop = asyncio.get_running_loop()
    slots = _slots.setdefault(loop, asyncio.Semaphore(MAX_TEMPLATE_THREADS))
    try:
        await asyncio.wait_for(slots.acquire(), 10 * timeout_s)
    except TimeoutError:
        message = "too many chat templates are being rendered: try again"
        raise ApiError(503, "server_busy", message, headers={"Retry-After": "1"}) from None
    result: asyncio.Future[str] = loop.create_future()
    arguments = (render, result, slots)
    threading.Thread(target=_render_in_thread, args=arguments, name="chat-template", daemon=True).start()
    try:
        return await asyncio.wait_for(result, timeout_s)
    except TimeoutError:
        raise ApiError(
            400,
            "template_timeout",
            f"the chat template took longer than {timeout_s:g} s: shorten the conversation, or raise "
            "--template-timeout-s",
            "messages",
        ) from None
    except QuireError as error:
        raise from_quire(error) from error


def _render_in_thread(
    render: Callable[[], str], result: asyncio.Future[str], slots: asyncio.Semaphore
) -> None:
    text, failure = "", None
    try:
        text = render()
    except Exception as error:  # handed to the event loop
        failure = error

    def finish() -> None:
        slots.release()
        if result.done():
            return
        if failure is None:
            result.set_result(text)
        else:
            result.set_exception(failure)

    with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
        result.get_loop().call_soon_threadsafe(finish)


def plain_message(message: ChatMessage, *, has_developer: bool = False) -> dict[str, object]:
    """A message as templates read it: content is one text, and arguments of tool calls are objects.

    Args:
        message: of the request.
        has_developer: the template knows that role; others get "system" for it.
    """
    role = "system" if message.role == "developer" and not has_developer else message.role
    plain: dict[str, object] = {"role": role, "content": _text(message.content)}
    for name in ("name", "tool_call_id"):
        value = getattr(message, name)
        if value is not None:
            plain[name] = value
    reasoning = message.reasoning_content or message.reasoning
    if reasoning:
        plain["reasoning_content"] = plain["reasoning"] = reasoning
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    elif message.content is None and message.role != "assistant":
        raise conflict(f"a message of role {message.role!r} has no content: give a text", "messages")
    return plain


def _text(content: str | Sequence[ContentPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text for part in content)


def _arguments(text: str) -> object:
    try:
        arguments = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ApiError(
            400,
            "invalid_tool_arguments",
            "the arguments of a tool call are no JSON object: send them as they came",
            "messages",
        )
    return arguments


def _values(body: ChatRequest, tools: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """What the template reads besides messages."""
    given = body.chat_template_kwargs or {}
    for name in given:
        if name in _OWN_NAMES:
            raise conflict(
                f"chat_template_kwargs must not set {name!r}: leave it out", "chat_template_kwargs"
            )
    try:
        values: dict[str, object] = {name: plain_copy(value, name) for name, value in given.items()}
    except NotPlainError as error:
        raise ApiError(400, "invalid_request", str(error), "chat_template_kwargs") from None
    if body.reasoning_effort is not None:
        values.setdefault("reasoning_effort", body.reasoning_effort)
    if tools:
        _check_size(tools)
        values["tools"] = list(tools)
    return values


def _check_size(tools: Sequence[Mapping[str, object]]) -> None:
    size = len(json.dumps(tools))  # unlike orjson it takes integers of any size
    if size > MAX_TOOLS_BYTES:
        raise ApiError(
            400,
            "tools_too_large",
            f"tools take {size} bytes, the limit is {MAX_TOOLS_BYTES}: send fewer",
            "tools",
        )
