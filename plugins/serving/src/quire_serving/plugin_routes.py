"""Routes that plugins bring, under `/plugins/PLUGIN/`."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import cast

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire.api.errors import ConfigError, ExtensionError
from quire.api.serving import PluginRoute, RouteContext
from quire_serving.errors import ApiError
from quire_serving.middleware.answer import send_error
from quire_serving.state import ServerState

_log = logging.getLogger("quire.server")


def plugin_routes(state: ServerState) -> list[BaseRoute]:
    """The routes of all plugins, ready to be served.

    Raises:
        ConfigError: two routes are the same, or one has a path or methods that cannot be.
        ExtensionError: a factory failed.
    """
    _check(state.extensions.routes)
    return [
        Route(_path(route), _PluginApp(route.plugin, _build(route, state)), methods=list(route.methods))
        for route in state.extensions.routes
    ]


def _path(route: PluginRoute) -> str:
    return f"/plugins/{route.plugin}{route.path}"


def _check(routes: Iterable[PluginRoute]) -> None:
    owners: dict[tuple[str, str], PluginRoute] = {}
    for route in routes:
        if not route.path.startswith("/") or not route.methods:
            raise ConfigError(
                f"plugin {route.plugin!r}: route {route.path!r} needs a path that begins with / and a method"
            )
        for method in route.methods:
            other = owners.setdefault((_path(route), method.upper()), route)
            if other is not route:
                raise ConfigError(
                    f"{method} {_path(route)} is registered twice: {other.path!r} of plugin {other.plugin!r} and "
                    f"{route.path!r} of plugin {route.plugin!r}; leave one out with --no-plugin"
                )


def _build(route: PluginRoute, state: ServerState) -> ASGIApp:
    try:
        app = route.factory(RouteContext(state.client, route.options))
    except Exception as error:
        raise ExtensionError(f"plugin {route.plugin!r}: its route {route.path!r} failed: {error}") from error
    if not callable(app):
        raise ConfigError(
            f"plugin {route.plugin!r}: the factory of its route {route.path!r} gave {type(app).__name__}: "
            "it must give an ASGI application"
        )
    return cast(ASGIApp, app)


class _PluginApp:
    """An ASGI application whose failures name the plugin in the log, and reach the client as its own code."""

    def __init__(self, plugin: str, app: ASGIApp) -> None:
        self._plugin = plugin
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_begun = False

        async def watched(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            _log.exception("plugin %s failed on %s", self._plugin, scope["path"])
            if is_begun:
                raise
            await send_error(send, ApiError(500, "plugin_failed", "a plugin failed on this request"))
