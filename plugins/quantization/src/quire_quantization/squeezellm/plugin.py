"""Registers the method `squeezellm` and the op that multiplies its weights."""

from __future__ import annotations

from quire.api.batch import DeviceInfo, DTypeName
from quire.api.hookspecs import hookimpl
from quire.api.specs import OpImplSpec, OpSpec, PluginInfo, QuantizationSpec


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(
        api=">=1,<2", description="SqueezeLLM checkpoints: 4-bit indices into a table per output"
    )


@hookimpl
def quire_register_quantizations() -> list[QuantizationSpec]:
    """The method of checkpoints whose weights are indices into a table."""
    return [
        QuantizationSpec(
            name="squeezellm",
            factory="quire_quantization.squeezellm.method:make_squeezellm",
            quant_methods=("squeezellm",),
        )
    ]


@hookimpl
def quire_register_ops() -> list[OpSpec | OpImplSpec]:
    """The op, and its implementation for CPUs."""
    return [
        OpSpec(
            "squeezellm_linear",
            "(Tensor x, Tensor qweight, Tensor lookup_table, Tensor? bias) -> Tensor",
            "quire_quantization.squeezellm.linear_ops:squeezellm_linear",
        ),
        OpImplSpec(
            "squeezellm_linear",
            "torch-pairs",
            "quire_quantization.squeezellm.linear_ops:squeezellm_linear_by_pairs",
            supports=_supports_pairs,
        ),
    ]


def _supports_pairs(device: DeviceInfo, dtype: DTypeName) -> str | None:
    if device.type != "cpu":
        return "gathers from tables that lie in a CPU's cache"
    return "multiplies in float32" if dtype == "float64" else None
