"""The plugin `stablelm`: one architecture. Imports only `quire.api`."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import ModelSpec, PluginInfo


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(api=">=1,<2", description="StableLM 1 to 2 (StableLmForCausalLM)")


@hookimpl
def quire_register_models() -> list[ModelSpec]:
    """See the hook specification."""
    return [ModelSpec("StableLmForCausalLM", "quire_stablelm.model:StableLmModel")]
