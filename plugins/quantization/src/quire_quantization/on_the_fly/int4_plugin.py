"""Registers the method `int4`."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import PluginInfo, QuantizationSpec
from quire_quantization.on_the_fly.options import Int4Options


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(
        api=">=1,<2",
        description="quantizes 16-bit checkpoints to int4 in groups while loading",
        options=Int4Options,
    )


@hookimpl
def quire_register_quantizations() -> list[QuantizationSpec]:
    """See the hook specification."""
    return [QuantizationSpec("int4", "quire_quantization.on_the_fly.int4:Int4Quantization")]
