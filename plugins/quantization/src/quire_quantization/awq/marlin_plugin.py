"""Registers the method `awq-marlin`."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import PluginInfo, QuantizationSpec


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(api=">=1,<2", description="AWQ checkpoints, repacked for fast kernels")


@hookimpl
def quire_register_quantizations() -> list[QuantizationSpec]:
    """The method that repacks a checkpoint once, at load; it claims before `awq`."""
    return [
        QuantizationSpec(
            name="awq-marlin",
            factory="quire_quantization.awq.method:make_awq_marlin",
            quant_methods=("awq",),
            priority=20,
            aliases=("marlin",),
        )
    ]
