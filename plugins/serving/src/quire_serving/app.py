"""The ASGI application of a server."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from quire_serving.error_answers import ERROR_RESPONSES, ERROR_STATUSES, add_error_handlers
from quire_serving.middleware.auth import KeyAuth, read_keys
from quire_serving.middleware.door import Door
from quire_serving.middleware.hosts import AllowedHosts, allowed_hosts
from quire_serving.middleware.limits import RequestLimits
from quire_serving.middleware.origins import AllowedOrigins
from quire_serving.middleware.record import RequestRecord
from quire_serving.plugin_routes import plugin_routes
from quire_serving.protocol.limits import tell_limits
from quire_serving.routes import (
    chat,
    completions,
    embeddings,
    generate,
    metrics,
    models,
    operator,
    page,
    responses,
    tokenize,
)
from quire_serving.state import ServerState

ROUTERS = tuple(
    module.router
    for module in (
        models,
        completions,
        chat,
        responses,
        embeddings,
        generate,
        tokenize,
        operator,
        metrics,
        page,
    )
)
GENERATING_PATHS = frozenset(
    route.path
    for module in (completions, chat, responses, generate)
    for route in module.router.routes
    if isinstance(route, APIRoute)
)
TITLE = "Quire"
DESCRIPTION = (
    "An OpenAI-compatible server. Errors have OpenAI's shape; their codes are stable. "
    "Plugins may add operations under /plugins/NAME/."
)
ERROR_CONTENT = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
EXPOSED_HEADERS = ("X-Request-Id", "X-Client-Request-Id", "Retry-After")


def version() -> str:
    """The installed version of this package."""
    return importlib.metadata.version("quire-serving")


def create_app(state: ServerState) -> ASGIApp:
    """The application of a server, all its limits around it.

    Raises:
        ConfigError: two plugins bring the same route, or a setting of keys or hosts is wrong.
    """
    settings = state.settings
    keys = read_keys(settings)
    state.num_api_keys = len(keys)
    app: ASGIApp = create_routes(state, has_keys=bool(keys))
    app = RequestLimits(app, settings.max_body_bytes, settings.body_timeout_s)
    app = Door(app, state, GENERATING_PATHS)
    if keys:
        app = KeyAuth(app, keys, [("GET", path) for path in _page_paths(state)])
    app = AllowedOrigins(app, settings.allowed_origins)
    if settings.allowed_origins:
        app = CORSMiddleware(
            app,
            allow_origins=settings.allowed_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=EXPOSED_HEADERS,
        )
    hosts = allowed_hosts(settings)
    if hosts is not None:
        app = AllowedHosts(app, hosts)
    return RequestRecord(app, state.metrics.http, has_log=settings.access_log)


def create_routes(state: ServerState, *, has_keys: bool = False) -> FastAPI:
    """The routes alone, without what is around them."""
    settings = state.settings
    app = FastAPI(
        title=TITLE,
        version=version(),
        description=DESCRIPTION,
        root_path=settings.root_path,
        docs_url="/docs" if settings.docs else None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name the host that the client gave
        openapi_url="/openapi.json" if settings.docs else None,
        responses=ERROR_RESPONSES,
    )
    app.state.server = state
    add_error_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    app.router.routes.extend(plugin_routes(state))
    _describe(app, state, has_keys=has_keys)
    return app


def _page_paths(state: ServerState) -> Iterable[str]:
    """The page is static and holds no data; it asks for the key itself."""
    return ("/",) if state.settings.page else ()


def _describe(app: FastAPI, state: ServerState, *, has_keys: bool) -> None:
    """Take FastAPI's 422 out of the schema, since it is never answered, and put limits and keys in."""
    generate = app.openapi

    def openapi() -> dict[str, object]:
        schema = generate()
        tell_limits(schema, state)
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                for (
                    status
                ) in ERROR_STATUSES:  # FastAPI leaves it out where the class of responses has no type
                    operation["responses"][str(status)]["content"] = ERROR_CONTENT
        components = schema.setdefault("components", {})
        for name in ("HTTPValidationError", "ValidationError"):
            components.get("schemas", {}).pop(name, None)
        if has_keys:
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"key": []}]
            for path in ("/health", "/ready"):
                schema["paths"][path]["get"]["security"] = []
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to change the schema
