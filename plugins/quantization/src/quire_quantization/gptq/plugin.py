"""Registers the method `gptq` and the op that it multiplies with."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import OpSpec, PluginInfo, QuantizationSpec


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(api=">=1,<2", description="GPTQ checkpoints of 2, 3, 4 and 8 bits")


@hookimpl
def quire_register_quantizations() -> list[QuantizationSpec]:
    """The method that multiplies out of the checkpoint's own layout."""
    return [
        QuantizationSpec(
            name="gptq", factory="quire_quantization.gptq.method:GPTQQuantization", quant_methods=("gptq",)
        )
    ]


@hookimpl
def quire_register_ops() -> list[OpSpec]:
    """The op of that layout."""
    schema = (
        "(Tensor x, Tensor qweight, Tensor scales, Tensor? qzeros, Tensor? g_idx, Tensor? bias, "
        "int bits, int zero_offset) -> Tensor"
    )
    return [OpSpec("gptq_linear", schema, "quire_quantization.gptq.op:gptq_linear")]
