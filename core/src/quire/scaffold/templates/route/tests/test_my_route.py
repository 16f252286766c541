"""The handler, over what it asks of an engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from quire_my_route.options import MyRouteOptions
from quire_my_route.route import busy
from starlette.requests import Request

from quire.api.client import EngineStatus
from quire.api.serving import RouteContext


class Client:
    """An engine that runs two requests."""

    def __init__(self, num_waiting: int) -> None:
        self.num_waiting = num_waiting

    def status(self) -> EngineStatus:
        return EngineStatus(True, "", 2 + self.num_waiting, 2, self.num_waiting, 0)


@pytest.mark.parametrize(("num_waiting", "is_busy"), [(3, False), (4, True)])
def test_it_is_busy_where_requests_wait(num_waiting: int, is_busy: bool) -> None:
    client: Any = Client(num_waiting)
    handler = busy(RouteContext(client, MyRouteOptions(busy_at=4)))
    answer = asyncio.run(handler(Request({"type": "http", "method": "GET", "headers": []})))
    assert json.loads(bytes(answer.body)) == {"busy": is_busy, "running": 2}
