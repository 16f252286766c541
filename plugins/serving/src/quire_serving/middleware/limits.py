"""What a request may cost before anything reads it: headers, body, time, nesting."""

from __future__ import annotations

import asyncio
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire_serving.errors import ApiError
from quire_serving.middleware.answer import send_error

MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 * 2**10
MAX_JSON_DEPTH = 64
_THREAD_FROM_BYTES = 2**18
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # possessive, and ends anywhere: linear
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class ClientGone(Exception):
    """The client went away before its body had come."""


class RequestLimits:
    """Reads each body, bounded, and hands it on whole.

    Args:
        max_body_bytes: counted as they come, whatever Content-Length says.
        body_timeout_s: in which the whole body must have come.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, body_timeout_s: float) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            _check_headers(scope)
            body = await self._read(scope, receive)
            await check_depth(body)
        except ClientGone:
            return
        except ApiError as error:
            await send_error(send, error)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        self._check_size(_content_length(scope))
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    self._check_size(size)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            limit = f"{self._body_timeout_s:g} s"
            raise ApiError(
                408, "body_timeout", f"the request's body did not come within {limit}: send it faster"
            ) from None

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_body_bytes:
            raise ApiError(
                413,
                "body_too_large",
                f"the request's body is longer than {self._max_body_bytes} bytes: send less, "
                "or raise --max-body-bytes",
            )


async def check_depth(body: bytes) -> None:
    """Refuse JSON that is nested too deep; what is not JSON may pass, and its parser refuses it."""
    if body.count(b"[") + body.count(b"{") <= MAX_JSON_DEPTH:
        return
    is_long = len(body) > _THREAD_FROM_BYTES
    if await asyncio.to_thread(_is_too_deep, body) if is_long else _is_too_deep(body):
        raise ApiError(
            400,
            "json_too_deep",
            f"the JSON is nested deeper than {MAX_JSON_DEPTH} levels: send a flatter one",
        )


def _is_too_deep(body: bytes) -> bool:
    """Strip strings, then one level of brackets after the other: each pass is one of the C library's."""
    brackets = _STRING.sub(b"", body).translate(None, _NO_BRACKETS)
    for _ in range(MAX_JSON_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if not brackets:
            return False
    return brackets.count(b"[") + brackets.count(b"{") > 0


def _check_headers(scope: Scope) -> None:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    size = sum(len(name) + len(value) + 4 for name, value in headers)  # ": " and the line's end
    if len(headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise ApiError(
            431,
            "headers_too_large",
            f"{len(headers)} headers of {size} bytes: send at most {MAX_HEADERS} of {MAX_HEADER_BYTES}",
        )


def _content_length(scope: Scope) -> int:
    """What the client announces; 0 where it says nothing that can be read."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and len(value) < 20:
            return int(value)
    return 0


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then what the connection says next."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return pending.pop() if pending else await receive()

    return next_message
