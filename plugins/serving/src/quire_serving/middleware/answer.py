"""How a middleware answers a request itself."""

from __future__ import annotations

import orjson
from starlette.types import Send

from quire_serving.errors import ApiError


async def send_error(send: Send, error: ApiError) -> None:
    """Answer with an error, as the routes do. The connection is closed: its body may not have been read."""
    body = orjson.dumps(error.body())
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **error.headers,
    }
    encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
