"""For operators: probes, queue figures, plugins."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from quire import __version__
from quire.api.errors import QuireError
from quire_serving.error_answers import ErrorAnswer
from quire_serving.errors import ApiError, draining, from_quire
from quire_serving.json_body import JsonRoute
from quire_serving.protocol.common import RequestModel, ResponseModel
from quire_serving.state import ServerState, server_of

router = APIRouter(tags=["operator"], route_class=JsonRoute)
State = Annotated[ServerState, Depends(server_of)]


class Health(ResponseModel):
    """A probe's answer."""

    status: str


class Version(ResponseModel):
    """Of Quire."""

    version: str


class Load(ResponseModel):
    """The queue as of now.

    Attributes:
        server_load: requests that have not ended, as vLLM calls it.
        max_queued_requests, max_queued_tokens: above which new requests get 429.
    """

    server_load: int
    num_running: int
    num_waiting: int
    num_waiting_tokens: int
    num_restarts: int
    max_queued_requests: int
    max_queued_tokens: int
    is_draining: bool


class PluginCard(ResponseModel):
    """An installed plugin.

    Attributes:
        reason: why it was not loaded; "" when it was.
        routes: paths that it serves here.
    """

    name: str
    distribution: str
    version: str
    description: str
    is_enabled: bool
    reason: str
    routes: list[str]


class PluginList(ResponseModel):
    """The installed plugins, as they were when the server started.

    Attributes:
        fingerprint: of the plugins that can change outputs.
        tool_parsers, reasoning_parsers: names that may be chosen.
    """

    plugins: list[PluginCard]
    fingerprint: str
    tool_parsers: list[str]
    reasoning_parsers: list[str]


class PluginSwitch(RequestModel):
    """Whether a plugin shall be on."""

    enabled: bool


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health() -> Health:
    """200 as long as the server's process lives, whatever its engine does."""
    return Health(status="ok")


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
async def ready(state: State) -> Health:
    """200 while requests are taken and the engine gets on with them, else 503 with the reason."""
    if state.is_draining:
        raise draining()
    status = state.client.status()
    if not status.is_ready:
        raise ApiError(503, "engine_not_ready", status.reason, headers={"Retry-After": "5"})
    return Health(status="ready")


@router.get("/version")
async def version() -> Version:
    """The version of Quire."""
    return Version(version=__version__)


@router.get("/load")
@router.get("/v1/load")
async def load(state: State) -> Load:
    """What the queue holds, and what it may hold."""
    status = state.client.status()
    return Load(
        server_load=status.num_requests,
        num_running=status.num_running,
        num_waiting=status.num_waiting,
        num_waiting_tokens=status.num_waiting_tokens,
        num_restarts=status.num_restarts,
        max_queued_requests=state.admission.max_queued_requests,
        max_queued_tokens=state.admission.max_queued_tokens,
        is_draining=state.is_draining,
    )


@router.get("/plugins")
async def list_plugins(state: State) -> PluginList:
    """The installed plugins, and what they bring for the server."""
    extensions = state.extensions
    routes: dict[str, list[str]] = {}
    for route in extensions.routes:
        routes.setdefault(route.plugin, []).append(f"/plugins/{route.plugin}{route.path}")
    return PluginList(
        plugins=[
            PluginCard(
                name=each.name,
                distribution=each.distribution,
                version=each.version,
                description=each.description,
                is_enabled=each.is_enabled,
                reason=each.reason,
                routes=routes.get(each.name, []),
            )
            for each in extensions.plugins
        ],
        fingerprint=state.client.description.fingerprint,
        tool_parsers=sorted(extensions.tool_parsers),
        reasoning_parsers=sorted(extensions.reasoning_parsers),
    )


@router.post(
    "/v1/plugins/{name}",
    status_code=204,
    response_class=Response,
    responses={
        409: {"model": ErrorAnswer, "description": "The plugin cannot be switched while the engine runs."}
    },
)
async def switch_plugin(name: str, body: PluginSwitch, state: State) -> Response:
    """Turn a plugin of the engine on or off between two of its steps."""
    if name not in {each.name for each in state.extensions.plugins}:
        raise ApiError(404, "plugin_not_found", f"no plugin {name[:100]!r} here: see GET /plugins", "name")
    try:
        await state.client.set_plugin(name, is_enabled=body.enabled)
    except QuireError as error:
        told = from_quire(error)
        raise replace(told, status=409, param="name") if told.code == "plugin_error" else told from error
    return Response(status_code=204)


@router.post("/reset_prefix_cache", status_code=204, response_class=Response)
async def reset_prefix_cache(state: State) -> Response:
    """Forget the cached prefixes that no request uses."""
    try:
        await state.client.reset_prefix_cache()
    except QuireError as error:
        raise from_quire(error) from error
    return Response(status_code=204)
