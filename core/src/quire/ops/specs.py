"""What core registers itself: its ops and its attention backend. Imports no torch."""

from __future__ import annotations

from quire.api.batch import DeviceInfo, DTypeName
from quire.api.specs import AttentionBackendSpec, OpSpec

_ELEMENTWISE = "(Tensor x) -> Tensor"
_WEIGHT_ONLY = (
    "(Tensor x, Tensor weight, Tensor scales, Tensor? zeros, Tensor? input_order, Tensor? bias, "
    "int out_features) -> Tensor"
)


def core_op_specs() -> list[OpSpec]:
    """Core's ops with their references. Activations bear the names that config.json gives them."""
    activations = ["silu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu"]
    return [
        OpSpec("rms_norm", "(Tensor x, Tensor weight, float eps) -> Tensor", "quire.ops.norm:rms_norm"),
        OpSpec(
            "layer_norm",
            "(Tensor x, Tensor weight, Tensor? bias, float eps) -> Tensor",
            "quire.ops.norm:layer_norm",
        ),
        OpSpec(
            "add_rms_norm",
            "(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)",
            "quire.ops.norm:add_rms_norm",
        ),
        OpSpec(
            "add_layer_norm",
            "(Tensor x, Tensor residual, Tensor weight, Tensor? bias, float eps) -> (Tensor, Tensor)",
            "quire.ops.norm:add_layer_norm",
        ),
        OpSpec("embedding", "(Tensor token_ids, Tensor weight) -> Tensor", "quire.ops.embedding:embedding"),
        OpSpec(
            "copy_blocks",
            "(Tensor(a!) cache, Tensor sources, Tensor destinations) -> Tensor(a!)",
            "quire.ops.copy_blocks:copy_blocks",
        ),
        OpSpec(
            "rotary",
            "(Tensor(a!) query, Tensor(b!) key, Tensor cos, Tensor sin, bool interleaved)"
            " -> (Tensor(a!), Tensor(b!))",
            "quire.ops.rotary:rotary",
        ),
        OpSpec("silu_and_mul", _ELEMENTWISE, "quire.ops.activation:silu_and_mul"),
        OpSpec(
            "linear",
            "(Tensor x, Tensor weight, Tensor? bias, int out_features) -> Tensor",
            "quire.ops.linear:linear",
        ),
        OpSpec("w4a16_linear", _WEIGHT_ONLY, "quire.ops.tiled_linear:w4a16_linear"),
        OpSpec("w8a16_linear", _WEIGHT_ONLY, "quire.ops.tiled_linear:w8a16_linear"),
        OpSpec(
            "w8a8_linear",
            "(Tensor x, Tensor weight, Tensor scales, Tensor? input_scale, Tensor? bias, int out_features)"
            " -> Tensor",
            "quire.ops.tiled_linear:w8a8_linear",
        ),
        OpSpec(
            "fp8_linear",
            "(Tensor x, Tensor weight, Tensor scales, Tensor? input_scale, bool quantize_input, Tensor? bias, "
            "int block_rows, int block_columns) -> Tensor",
            "quire.ops.fp8_linear:fp8_linear",
        ),
        OpSpec(
            "apply_penalties",
            "(Tensor(a!) logits, Tensor token_ids, Tensor counts, Tensor row_offsets, Tensor repetition, "
            "Tensor frequency, Tensor presence) -> Tensor(a!)",
            "quire.ops.sampling:apply_penalties",
        ),
        OpSpec("greedy_tokens", "(Tensor logits) -> Tensor", "quire.ops.sampling:greedy_tokens"),
        OpSpec(
            "sample_tokens",
            "(Tensor logits, Tensor temperature, Tensor min_p, Tensor top_k, Tensor top_p, Tensor draws) -> Tensor",
            "quire.ops.sampling:sample_tokens",
        ),
        *(OpSpec(name, _ELEMENTWISE, f"quire.ops.activation:{name}") for name in activations),
    ]


def core_attention_backend_specs() -> list[AttentionBackendSpec]:
    """The reference backend: plain torch, every device and dtype."""
    return [
        AttentionBackendSpec(
            name="torch-paged",
            factory="quire.ops.paged_attention:TorchPagedAttention",
            supports=_supports_everything,
            priority=0,
            kv_cache_dtypes=("auto", "fp8_e4m3", "int8"),
        )
    ]


def _supports_everything(device: DeviceInfo, dtype: DTypeName) -> str | None:
    return None
