"""How a middleware answers a request itself."""

from __future__ import annotations

import asyncio
import contextlib

import orjson
from starlette.types import Receive, Scope, Send

from quire_serving.errors import ApiError

DISCARD_BYTES = 2**24
DISCARD_S = 2.0


def encoded(error: ApiError) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of an error that closes its connection."""
    body = orjson.dumps(error.body())
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **error.headers,
    }
    pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return pairs, body


async def send_error(send: Send, error: ApiError, *, is_whole: bool = True) -> None:
    """Answer with an error, as the routes do, and have the connection closed.

    Args:
        send: of ASGI.
        error: to answer with.
        is_whole: the answer ends here; else the caller sends its empty last part.
    """
    headers, body = encoded(error)
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": not is_whole})


async def refuse(scope: Scope, receive: Receive, send: Send, error: ApiError) -> None:
    """Answer a request whose body has not been read whole.

    A connection that is closed while its client still writes is reset, and the answer is lost: a bounded part
    of what still comes is read and thrown away.
    """
    await send_error(send, error, is_whole=False)
    waits_for_leave = any(name == b"expect" for name, _ in scope["headers"])  # it will not send the body now
    if not waits_for_leave:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_S):
                await _discard(receive)
    await send({"type": "http.response.body", "body": b""})


async def _discard(receive: Receive) -> None:
    num_left = DISCARD_BYTES
    while num_left > 0:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
        num_left -= len(message.get("body", b""))
