"""The plugin `my-model`: registers one architecture. Imports `quire.api` only, so that it loads at once."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import ModelSpec, PluginInfo


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """The range of hook API versions that this was written for, and a line for `quire plugins list`."""
    return PluginInfo(api=">=1,<2", description="Granite (GraniteForCausalLM)")


@hookimpl
def quire_register_models() -> list[ModelSpec]:
    """Left the name in config.json's `architectures`; right the class, imported when a model asks for it."""
    return [ModelSpec("GraniteForCausalLM", "quire_my_model.model:MyModelModel")]
