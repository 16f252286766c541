"""Routes that plugins bring, under `/plugins/PLUGIN/`."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, request_response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire.api.errors import ConfigError, ExtensionError
from quire.api.serving import PluginRoute, RouteContext
from quire_serving.errors import from_quire
from quire_serving.middleware.answer import send_error
from quire_serving.state import ServerState

Watch = Callable[[], AbstractContextManager[None]]

_log = logging.getLogger("quire.server")


def plugin_routes(state: ServerState) -> list[BaseRoute]:
    """The routes of all plugins, ready to be served.

    Raises:
        ConfigError: two routes are the same, or one has a path or methods that cannot be.
        ExtensionError: a factory failed.
    """
    _check(state.extensions.routes)
    return [
        Route(_path(route), _plugin_app(route, state), methods=list(route.methods))
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


def _plugin_app(route: PluginRoute, state: ServerState) -> _PluginApp:
    watch = state.extensions.watch
    try:
        with watch(route.plugin, "RouteSpec.factory"):
            made = route.factory(RouteContext(state.client, route.options))
    except (Exception, SystemExit) as error:
        text = f"plugin {route.plugin!r}: its route {route.path!r} failed: {error}"
        raise ExtensionError(text, route.plugin) from error
    if not callable(made):
        raise ConfigError(
            f"plugin {route.plugin!r}: the factory of its route {route.path!r} gave {type(made).__name__}: "
            "it must give an ASGI application, or a handler of requests"
        )
    is_handler = inspect.isroutine(made) and len(inspect.signature(made).parameters) == 1
    app = request_response(cast(Callable[[Request], Response], made)) if is_handler else cast(ASGIApp, made)
    return _PluginApp(route, app, partial(watch, route.plugin, f"route {route.path}"))


class _PluginApp:
    """An ASGI application whose failures name the plugin, to the client and with all else in the log.

    Attributes:
        path: of the route, for the access log and the metrics, which look for it in the scope.
    """

    def __init__(self, route: PluginRoute, app: ASGIApp, watch: Watch) -> None:
        self.path = _path(route)
        self._plugin = route.plugin
        self._app = app
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self  # as FastAPI does for its own
        is_begun = False

        async def watched(message: Message) -> None:
            nonlocal is_begun
            await send(message)
            is_begun = True

        failure = ExtensionError(f"plugin {self._plugin!r} failed on {scope['path']!r}", self._plugin)
        try:
            with self._watch():
                await self._app(scope, receive, watched)
                if not is_begun:
                    raise TypeError("the application ended without an answer")
        except (Exception, SystemExit) as error:
            if is_begun:
                raise failure from error  # the outermost middleware logs it; the connection is cut
            _log.exception("%s", failure)
            await send_error(send, from_quire(failure))
