"""The outermost middleware: request ids, the access log, the metrics, and errors that nothing else caught."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire_serving.errors import ApiError
from quire_serving.middleware.answer import send_error

if TYPE_CHECKING:
    from quire_serving.request_metrics import RequestTimer

_log = logging.getLogger("quire.server")
_access_log = logging.getLogger("quire.access")
_SAFE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
CLIENT_CLOSED = 499
"""Recorded as the status where the client left before it was answered."""

HttpObserver = Callable[[str, str, int, float], None]
"""Told the method, the route's template, the status and the seconds of every request."""


class RequestRecord:
    """Names every request, logs it and counts it.

    Args:
        observe: for metrics.
        has_log: whether to write a line of JSON on the logger `quire.access`.
    """

    def __init__(self, app: ASGIApp, observe: HttpObserver, *, has_log: bool = True) -> None:
        self._app = app
        self._observe = observe
        self._has_log = has_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s = time.perf_counter()
        request_id = f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        own_headers = _id_headers(scope, request_id)
        status = CLIENT_CLOSED

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *own_headers]}
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception:
            _log.exception("request %s failed", request_id)
            if status == CLIENT_CLOSED:
                await send_error(send_named, ApiError(500, "internal_error", "internal error"))
            # Else the answer had begun; uvicorn closes a connection whose answer has no end.
        finally:
            self._record(scope, status, time.perf_counter() - start_s, request_id)

    def _record(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        route = getattr(scope.get("route"), "path", None)
        self._observe(scope["method"], "unmatched" if route is None else route, status, seconds)
        if not self._has_log:
            return
        client = scope.get("client")
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "method": scope["method"][:20],
            "path": scope["path"][:1000],
            "route": route,
            "status": status,
            "seconds": round(seconds, 6),
            "request_id": request_id,
            "client_request_id": _client_id(scope),
            "client": None if client is None else client[0],
            **_usage(scope["state"].get("timers", ())),
        }
        text = json.dumps(line)  # ASCII: nothing of it can end the line or mislead a terminal
        _access_log.info("%s", text)


def _usage(timers: Sequence[RequestTimer]) -> dict[str, object]:
    """What the engine did for the request; nothing where it was not asked."""
    if not timers:
        return {}
    first = [timer.first_token_s for timer in timers if timer.first_token_s is not None]
    return {
        "prompt_tokens": sum(timer.num_prompt for timer in timers),
        "output_tokens": sum(timer.num_output for timer in timers),
        "first_token_s": round(min(first), 6) if first else None,
    }


def _client_id(scope: Scope) -> str | None:
    """The client's own id for the request; None where there is none, or it is not harmless."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode("ascii") if _SAFE_ID.fullmatch(given) else None


def _id_headers(scope: Scope, request_id: str) -> list[tuple[bytes, bytes]]:
    """The server's id, and the client's own."""
    headers = [(b"x-request-id", request_id.encode("ascii"))]
    given = _client_id(scope)
    if given is not None:
        headers.append((b"x-client-request-id", given.encode("ascii")))
    return headers
