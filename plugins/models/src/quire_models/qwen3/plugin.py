"""Registers Qwen3. Imports only `quire.api`."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import ModelSpec, PluginInfo


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(api=">=1,<2", description="Qwen3 (Qwen3ForCausalLM)")


@hookimpl
def quire_register_models() -> list[ModelSpec]:
    """See the hook specification."""
    return [ModelSpec("Qwen3ForCausalLM", "quire_models.qwen3.model:Qwen3Model")]
