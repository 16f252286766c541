"""Registers Qwen2 and Qwen2.5. Imports only `quire.api`."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import ModelSpec, PluginInfo


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(api=">=1,<2", description="Qwen2 and Qwen2.5 (Qwen2ForCausalLM)")


@hookimpl
def quire_register_models() -> list[ModelSpec]:
    """See the hook specification."""
    return [ModelSpec("Qwen2ForCausalLM", "quire_models.qwen2.model:Qwen2Model")]
