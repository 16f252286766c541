"""Registers the method `awq` and the ops that multiply its layouts."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import OpSpec, PluginInfo, QuantizationSpec

_SCHEMA = (
    "(Tensor x, Tensor qweight, Tensor? zeros, Tensor scales, Tensor? bias, int group_size, int input_start)"
    " -> Tensor"
)


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(api=">=1,<2", description="AWQ checkpoints")


@hookimpl
def quire_register_quantizations() -> list[QuantizationSpec]:
    """The method that multiplies a checkpoint's tensors as they are stored."""
    return [
        QuantizationSpec(
            name="awq", factory="quire_quantization.awq.method:make_awq", quant_methods=("awq",), priority=10
        )
    ]


@hookimpl
def quire_register_ops() -> list[OpSpec]:
    """One op for each layout."""
    return [
        OpSpec(name, _SCHEMA, f"quire_quantization.awq.linear_ops:{name}")
        for name in ("awq_linear", "awq_gemv_linear", "awq_gemv_fast_linear")
    ]
