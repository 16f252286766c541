"""Registers the methods `compressed-tensors` and `fp8`, and the op that multiplies out of packed words."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import OpSpec, PluginInfo, QuantizationSpec

_PACKAGE = "quire_quantization.compressed_tensors"


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(api=">=1,<2", description="checkpoints of llm-compressor: W4A16, W8A16, W8A8, fp8")


@hookimpl
def quire_register_quantizations() -> list[QuantizationSpec]:
    """The methods, by the label of the checkpoints that they read."""
    return [
        QuantizationSpec(
            name="compressed-tensors",
            factory=f"{_PACKAGE}.method:CompressedTensors",
            quant_methods=("compressed-tensors",),
        ),
        QuantizationSpec(
            name="fp8", factory=f"{_PACKAGE}.fine_grained:FineGrainedFp8", quant_methods=("fp8",)
        ),
    ]


@hookimpl
def quire_register_ops() -> list[OpSpec]:
    """The op of integers that do not go into tiles."""
    schema = (
        "(Tensor x, Tensor weight, Tensor scales, Tensor? zeros, Tensor? input_groups, Tensor? bias, int bits)"
        " -> Tensor"
    )
    return [OpSpec("pack_quantized_linear", schema, f"{_PACKAGE}.op:pack_quantized_linear")]
