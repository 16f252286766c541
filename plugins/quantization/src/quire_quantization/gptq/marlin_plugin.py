"""Registers the method `gptq-marlin`."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.quantization import QuantizationRequest
from quire.api.specs import PluginInfo, QuantizationSpec
from quire_quantization.gptq.config import stored_bits

_TILE_BITS = (4, 8)


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(api=">=1,<2", description="GPTQ checkpoints of 4 and 8 bits, repacked for fast kernels")


@hookimpl
def quire_register_quantizations() -> list[QuantizationSpec]:
    """The method that repacks at load; it claims before `gptq`."""
    return [
        QuantizationSpec(
            name="gptq-marlin",
            factory="quire_quantization.gptq.marlin:GPTQMarlinQuantization",
            quant_methods=("gptq",),
            supports=_refusal,
            priority=20,
            aliases=("marlin",),
        )
    ]


def _refusal(request: QuantizationRequest) -> str | None:
    """None where some layer has bits that tiles hold; layers that have others fall back one by one."""
    bits = stored_bits(request.config or {})
    if any(value in _TILE_BITS for value in bits):
        return None
    found = ", ".join(str(value) for value in bits) or "none given"
    return f"tiles hold 4 or 8 bits, and no layer of the checkpoint has them (bits: {found})"
