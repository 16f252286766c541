"""Which Host headers are answered: a page elsewhere must not reach a local server by DNS rebinding."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from quire_serving.errors import ApiError
from quire_serving.middleware.answer import refuse
from quire_serving.settings import ServeSettings

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def allowed_hosts(settings: ServeSettings) -> frozenset[str] | None:
    """The names that are answered, lower case and without ports; None is any."""
    if settings.allowed_hosts:
        names = {_name(host) for host in settings.allowed_hosts}
        return None if "*" in names else frozenset(names)
    return frozenset({*LOOPBACK_NAMES, settings.host}) if is_loopback(settings.host) else None


class AllowedHosts:
    """Refuses requests whose Host is not one of `hosts`, with any port."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan" or self._is_allowed(scope):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        message = "this Host header is not answered here: add its name with --allowed-hosts"
        await refuse(scope, receive, send, ApiError(400, "host_not_allowed", message))

    def _is_allowed(self, scope: Scope) -> bool:
        values = [value for name, value in scope["headers"] if name == b"host"]
        return len(values) == 1 and _name(values[0].decode("latin-1")) in self._hosts


def _name(host: str) -> str:
    """A host without its port, an IPv6 address without brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, separator, port = host.rpartition(":")
    return name if separator and port.isdigit() and ":" not in name else host
