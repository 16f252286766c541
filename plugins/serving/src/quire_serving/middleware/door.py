"""The first look at requests to generate: where no answer can come, they are refused before they are read."""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from quire_serving.admission import check_open
from quire_serving.errors import ApiError
from quire_serving.middleware.answer import refuse
from quire_serving.state import ServerState


class Door:
    """Refuses while the server drains, has no engine any more, or its queue is full.

    Args:
        paths: of the routes that generate.
    """

    def __init__(self, app: ASGIApp, state: ServerState, paths: Collection[str]) -> None:
        self._app = app
        self._state = state
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and scope["method"] == "POST" and self._is_for_engine(scope["path"]):
            try:
                check_open(self._state)
            except ApiError as error:
                self._state.metrics.rejected(error.code)
                await refuse(scope, receive, send, error)
                return
        await self._app(scope, receive, send)

    def _is_for_engine(self, path: str) -> bool:
        return path.removeprefix(self._state.settings.root_path.rstrip("/")) in self._paths
