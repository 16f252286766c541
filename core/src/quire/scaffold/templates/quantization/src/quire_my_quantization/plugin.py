"""The plugin `my-quantization`: registers a quantization method. Imports `quire.api` only."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.quantization import QuantizationRequest
from quire.api.specs import PluginInfo, QuantizationSpec


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """The range of hook API versions that this was written for, and a line for `quire plugins list`."""
    return PluginInfo(api=">=1.1,<2", description="8-bit integers in groups")


@hookimpl
def quire_register_quantizations() -> list[QuantizationSpec]:
    """The method, and the labels of the checkpoints that it claims."""
    return [SPEC]


def supports(request: QuantizationRequest) -> str | None:
    """None where the checkpoint can be served on this device, else the reason, which the start-up log shows."""
    bits = (request.config or {}).get("bits", 8)
    return None if bits == 8 else f"it has {bits} bits, 8 are served"


SPEC = QuantizationSpec(
    "my-quantization",
    "quire_my_quantization.method:MyQuantization",
    quant_methods=("my-quantization",),
    supports=supports,
)
