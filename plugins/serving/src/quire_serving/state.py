"""What the routes of one server share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import Request

from quire.api.client import EngineClient
from quire.api.serving import ServerExtensions
from quire_serving.settings import ServeSettings

if TYPE_CHECKING:
    from quire_serving.admission import Admission
    from quire_serving.metrics import ServerMetrics


@dataclass(slots=True)
class ServerState:
    """One server; at `app.state.server`.

    Attributes:
        model_names: what requests may call the model; answers name the first one.
        created: Unix seconds of the start.
        is_draining: new requests are refused, since the server is about to end.
        num_api_keys: that open the server; 0 where it is open to all.
    """

    client: EngineClient
    settings: ServeSettings
    extensions: ServerExtensions
    model_names: tuple[str, ...]
    created: int
    admission: Admission
    metrics: ServerMetrics
    is_draining: bool = False
    num_api_keys: int = 0


async def server_of(request: Request) -> ServerState:
    """The state of the server that got this request; use as `Depends(server_of)`.

    A coroutine function, since FastAPI calls others in a thread.
    """
    state: ServerState = request.app.state.server
    return state
