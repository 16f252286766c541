"""What a request may cost before anything reads it: headers, body, time."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire_serving.errors import ApiError
from quire_serving.middleware.answer import refuse, send_error
from quire_serving.middleware.auth import PROBES

MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 * 2**10
PATHS_WITHOUT_BODY = PROBES | {"/"}
"""Whoever has no key may ask for these: no body of theirs is kept."""


class ClientGone(Exception):
    """The client went away before its body had come."""


class BodyTimeout(ApiError):
    """The body did not come in time: nothing of it is waited for any more."""

    def __init__(self, limit_s: float) -> None:
        message = f"the request's body did not come within {limit_s:g} s: send it faster"
        super().__init__(408, "body_timeout", message)


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
        except ClientGone:
            return
        except BodyTimeout as error:
            await send_error(send, error)
            return
        except ApiError as error:
            await refuse(scope, receive, send, error)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        is_bare = scope["method"] in ("GET", "HEAD") and scope["path"] in PATHS_WITHOUT_BODY
        limit = 0 if is_bare else self._max_body_bytes
        _check_size(_content_length(scope), limit)
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
                    _check_size(size, limit)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise BodyTimeout(self._body_timeout_s) from None


def _check_size(num_bytes: int, limit: int) -> None:
    if num_bytes > limit:
        remedy = "send less, or raise --max-body-bytes" if limit else "send none here"
        message = f"the request's body is longer than {limit} bytes: {remedy}"
        raise ApiError(413, "body_too_large", message)


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
