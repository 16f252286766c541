"""Registers the Triton kernels. Imports only `quire.api`: Triton itself is imported where it serves."""

from __future__ import annotations

import importlib.util

from quire.api.batch import DeviceInfo, DTypeName, KVCacheDTypeName
from quire.api.hookspecs import hookimpl
from quire.api.specs import AttentionBackendSpec, OpImplSpec, OpSpec, PluginInfo

_OLDEST_CUDA = 80


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(api=">=1,<2", description="Triton kernels for CUDA and ROCm, compiled on first use")


@hookimpl
def quire_register_ops() -> list[OpSpec | OpImplSpec]:
    """See the hook specification."""
    linears = ("w4a16_linear", "w8a16_linear")
    return [
        *(OpImplSpec(op, "triton", f"quire_kernels.{op}.triton:{op}", triton_refusal) for op in linears),
        *(
            OpImplSpec(op, "triton", f"quire_kernels.{op}.triton:{op}", small_op_refusal)
            for op in ("rms_norm", "layer_norm", "rotary", "silu_and_mul", "embedding", "copy_blocks")
        ),
        *(
            OpImplSpec(f"add_{op}", "triton", f"quire_kernels.{op}.triton:add_{op}", small_op_refusal)
            for op in ("rms_norm", "layer_norm")
        ),
        *(
            OpImplSpec(op, "triton", f"quire_kernels.activation.triton:{op}", small_op_refusal)
            for op in ("silu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu")
        ),
        *(
            OpImplSpec(op, "triton", f"quire_kernels.sampling.triton:{op}", small_op_refusal)
            for op in ("apply_penalties", "greedy_tokens", "sample_tokens")
        ),
    ]


@hookimpl
def quire_register_attention_backends() -> list[AttentionBackendSpec]:
    """See the hook specification."""
    factory = "quire_kernels.paged_attention.triton:TritonPagedAttention"
    dtypes: tuple[KVCacheDTypeName, ...] = ("auto", "fp8_e4m3", "int8")
    return [AttentionBackendSpec("triton-paged", factory, small_op_refusal, kv_cache_dtypes=dtypes)]


def triton_refusal(device: DeviceInfo, dtype: DTypeName) -> str | None:
    """None where the Triton kernels of 16-bit activations serve, else the reason why not."""
    refusal = _device_refusal(device)
    if refusal is None and dtype not in ("bfloat16", "float16"):
        return f"takes bfloat16 and float16 activations, not {dtype}"
    return refusal


def small_op_refusal(device: DeviceInfo, dtype: DTypeName) -> str | None:
    """None where the Triton kernels that compute in float32 serve, else the reason why not."""
    refusal = _device_refusal(device)
    if refusal is None and dtype == "float64":
        return "computes in float32, which would lose the digits of float64"
    return refusal


def _device_refusal(device: DeviceInfo) -> str | None:
    if device.type != "cuda":
        return f"needs a CUDA or ROCm device, not {device.type}"
    for name in device.capabilities:
        if name.startswith("sm_") and name[3:].isdecimal() and int(name[3:]) < _OLDEST_CUDA:
            return f"needs compute capability sm_{_OLDEST_CUDA} or later, not {name}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton (torch for CUDA and ROCm brings it)"
    return None
