"""Registers the native CPU kernels. Imports only `quire.api` and, to ask for support, this package."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import AttentionBackendSpec, OpImplSpec, OpSpec, PluginInfo, StepCaptureSpec
from quire_kernels.fp8_linear.support import fp8_refusal
from quire_kernels.native.bfloat16 import bfloat16_refusal, vectors_refusal
from quire_kernels.native.library import native_refusal
from quire_kernels.w8a8_linear.support import int8_refusal


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(api=">=1,<2", description="native CPU kernels, compiled on first use")


@hookimpl
def quire_register_ops() -> list[OpSpec | OpImplSpec]:
    """See the hook specification."""
    return [
        *(
            OpImplSpec(op, "native", f"quire_kernels.{op}.native:{op}", native_refusal)
            for op in ("rms_norm", "layer_norm", "rotary", "silu_and_mul", "embedding", "copy_blocks")
        ),
        *(
            OpImplSpec(f"add_{op}", "native", f"quire_kernels.{op}.native:add_{op}", native_refusal)
            for op in ("rms_norm", "layer_norm")
        ),
        *(
            OpImplSpec(op, "native", f"quire_kernels.activation.native:{op}", native_refusal)
            for op in ("silu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu")
        ),
        OpImplSpec("fp8_linear", "native", "quire_kernels.fp8_linear.native:fp8_linear", fp8_refusal),
        *(
            OpImplSpec(op, "native", f"quire_kernels.{op}.native:{op}", bfloat16_refusal)
            for op in ("linear", "w4a16_linear", "w8a16_linear")
        ),
        *(
            OpImplSpec(op, "native-vectors", f"quire_kernels.{op}.native:{op}", vectors_refusal, priority=5)
            for op in ("linear", "w4a16_linear", "w8a16_linear")
        ),
        OpImplSpec("w8a8_linear", "native", "quire_kernels.w8a8_linear.native:w8a8_linear", int8_refusal),
        *(
            OpImplSpec(op, "native", f"quire_kernels.sampling.native:{op}", native_refusal)
            for op in ("apply_penalties", "greedy_tokens", "sample_tokens")
        ),
    ]


@hookimpl
def quire_register_step_captures() -> list[StepCaptureSpec]:
    """See the hook specification."""
    return [
        StepCaptureSpec("native-replay", "quire_kernels.replay.capture:NativeCapture", native_refusal),
    ]


@hookimpl
def quire_register_attention_backends() -> list[AttentionBackendSpec]:
    """See the hook specification."""
    return [
        AttentionBackendSpec(
            "native-paged",
            "quire_kernels.paged_attention.native:NativePagedAttention",
            native_refusal,
            kv_cache_dtypes=("auto", "fp8_e4m3", "int8"),
        )
    ]
