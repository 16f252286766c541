"""Which pages may change something: a form of any page is sent anywhere, only its Origin header gives it away."""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from quire_serving.errors import ApiError
from quire_serving.middleware.answer import refuse

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class AllowedOrigins:
    """Refuses requests with unsafe methods whose Origin is neither this server nor allowed.

    JSON passes: a browser asks first (CORS) before it sends that to another origin, and is told no. So do clients that
    are no browsers, and pages behind a proxy that changes the Host.

    Args:
        origins: allowed ones, as CORS compares them; "*" is any.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS or self._is_allowed(scope):
            await self._app(scope, receive, send)
            return
        message = "pages of this Origin may not change anything here: add it with --allowed-origins"
        await refuse(scope, receive, send, ApiError(403, "origin_not_allowed", message))

    def _is_allowed(self, scope: Scope) -> bool:
        origins = _values(scope, b"origin")
        if not origins or "*" in self._origins:
            return True
        kinds = [kind.partition(";")[0].strip().lower() for kind in _values(scope, b"content-type")]
        if kinds == ["application/json"]:
            return True
        hosts = [host.lower() for host in _values(scope, b"host") if host]
        return all(
            origin in self._origins or [origin.lower().partition("://")[2]] == hosts for origin in origins
        )


def _values(scope: Scope, wanted: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
