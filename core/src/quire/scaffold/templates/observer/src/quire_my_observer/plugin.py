"""The plugin `my-observer`: makes an observer for each engine. Imports `quire.api` only."""

from __future__ import annotations

from quire.api.config import EngineConfig
from quire.api.extensions import EngineObserver
from quire.api.hookspecs import hookimpl
from quire.api.specs import PluginInfo


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """It runs where the engine plans, and changes no output."""
    return PluginInfo(
        api=">=1,<2",
        description="logs requests and tokens now and then",
        options="quire_my_observer.options:MyObserverOptions",
        runs_in=("engine",),
        affects_outputs=False,
    )


@hookimpl
def quire_create_observers(config: EngineConfig, options: object) -> list[EngineObserver]:
    """One observer per engine."""
    from quire_my_observer.observer import MyObserver
    from quire_my_observer.options import MyObserverOptions

    return [MyObserver(options if isinstance(options, MyObserverOptions) else MyObserverOptions())]
