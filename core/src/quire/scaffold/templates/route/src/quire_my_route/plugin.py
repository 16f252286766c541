"""The plugin `my-route`: registers a route of the server. Imports `quire.api` only."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import PluginInfo, RouteSpec


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """The range of hook API versions that this was written for, and where its options are."""
    return PluginInfo(
        api=">=1.3,<2",
        description="how busy the server is",
        options="quire_my_route.options:MyRouteOptions",
        affects_outputs=False,
    )


@hookimpl
def quire_register_routes() -> list[RouteSpec]:
    """`GET /plugins/my-route/busy`, behind the server's API keys."""
    return [RouteSpec("/busy", "quire_my_route.route:busy", ("GET",))]
