"""Registers Llama 1 to 3.x. Imports only `quire.api`."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import ModelSpec, PluginInfo


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(api=">=1,<2", description="Llama 1 to 3.x (LlamaForCausalLM)")


@hookimpl
def quire_register_models() -> list[ModelSpec]:
    """See the hook specification."""
    return [ModelSpec("LlamaForCausalLM", "quire_models.llama.model:LlamaModel")]
