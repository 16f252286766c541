"""The plugin `my-drafter`: registers a drafter. Imports `quire.api` only."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import DrafterSpec, PluginInfo


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """The range of hook API versions that this was written for."""
    return PluginInfo(api=">=1.2,<2", description="drafts what followed the last tokens the last time")


@hookimpl
def quire_register_drafters() -> list[DrafterSpec]:
    """`LLM(speculative_config={"method": "my-drafter"})` selects it."""
    return [
        DrafterSpec(
            "my-drafter",
            "quire_my_drafter.drafter:MyDrafter",
            settings="quire_my_drafter.settings:MyDrafterSettings",
        )
    ]
