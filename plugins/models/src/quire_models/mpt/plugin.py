"""Registers MPT. Imports only `quire.api`."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import ModelSpec, PluginInfo


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(api=">=1,<2", description="MPT (MptForCausalLM, MPTForCausalLM)")


@hookimpl
def quire_register_models() -> list[ModelSpec]:
    """See the hook specification. MosaicML's own checkpoints spell the architecture MPTForCausalLM."""
    factory = "quire_models.mpt.model:MptModel"
    return [ModelSpec("MptForCausalLM", factory), ModelSpec("MPTForCausalLM", factory)]
