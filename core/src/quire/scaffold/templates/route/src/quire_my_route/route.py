"""The route. Starlette comes with quire-serving, without which nothing asks for routes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from quire.api.serving import RouteContext
from quire_my_route.options import MyRouteOptions


def busy(context: RouteContext) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """Make the handler, once, when the server starts."""
    options = context.options if isinstance(context.options, MyRouteOptions) else MyRouteOptions()

    async def handler(request: Request) -> Response:
        """Runs on the server's event loop: what blocks is a plain function, which runs in a thread."""
        status = context.client.status()
        return JSONResponse({"busy": status.num_waiting >= options.busy_at, "running": status.num_running})

    return handler
