"""Resolves the name "tiny" to the demo model that this distribution carries. Imports only `quire.api`."""

from __future__ import annotations

from pathlib import Path

from quire.api.hookspecs import hookimpl
from quire.api.specs import PluginInfo


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(api=">=1,<2", description="the packaged demo model, named tiny")


@hookimpl
def quire_resolve_model(name: str) -> Path | None:
    """The packaged folder for "tiny", None for every other name."""
    return Path(__file__).parent / "tiny" if name == "tiny" else None
