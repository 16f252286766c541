"""Registers the command `quire quantize`."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import CommandSpec, PluginInfo


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(
        api=">=1,<2",
        description="the command quantize, which writes quantized checkpoints",
        runs_in=("frontend",),
        affects_outputs=False,
    )


@hookimpl
def quire_register_commands() -> list[CommandSpec]:
    """See the hook specification."""
    return [
        CommandSpec(
            "quantize",
            "write a quantized checkpoint of a model, and compare its loss with the model's",
            "quire_quantization.quantize.command:QuantizeCommand",
        )
    ]
