"""Tiny configurations of a Hugging Face architecture, derived from the fields that its config class has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from quire.testing.conformance import ConformanceError

Fields = Mapping[str, object]

_HEADS = ("num_attention_heads", "n_head", "n_heads")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_SIZES: tuple[tuple[tuple[str, ...], object], ...] = (
    (("vocab_size",), 97),
    (_HIDDEN, 64),
    (("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner"), 48),
    (("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    (("num_experts", "num_local_experts", "n_routed_experts"), 4),
    (("num_experts_per_tok",), 2),
    (("num_hidden_layers", "n_layer", "n_layers"), 2),
    (_HEADS, 4),
    (_KV_HEADS, 2),
    (("head_dim",), 16),
    (("rotary_dim",), 8),
    (("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    (("bos_token_id",), 1),
    (("eos_token_id",), 2),
    (("pad_token_id",), None),
    (("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon"), 0.01),
)
"""Values for whichever of the names a config class has; an eps that is seen in the logits."""

_ACTIVATIONS = ("hidden_act", "activation_function", "hidden_activation")
_FLAG = re.compile(
    r"(?!no_bias|learned).*bias|.*parallel_(residual|attn)|.*qk_(layer)?norm|use_qk_norm|scale_attn_.*"
)
_THETA = 500.0


def find_hf_class(architecture: str) -> Any:
    """The class of transformers that is called like an architecture.

    Raises:
        ConformanceError: transformers is not installed or has none.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConformanceError(
            f"{architecture}: transformers is not installed, so there is nothing to compare with: "
            "install it, or override `reference` and `write_checkpoint`"
        ) from error
    found = getattr(transformers, architecture, None)
    if getattr(found, "config_class", None) is None:
        raise ConformanceError(
            f"transformers {transformers.__version__} has no architecture {architecture!r}: "
            "override `reference` and `write_checkpoint` of the suite"
        )
    return found


def derive_configs(hf_class: Any) -> dict[str, Fields]:
    """Keywords of the architecture's config class: "base" first, then one trait changed at a time."""
    known: dict[str, Any] = hf_class.config_class().to_dict()
    base: dict[str, object] = {}
    for names, value in _SIZES:
        base.update((name, value) for name in names if name in known)
    ropes = known.get("rope_parameters")
    if isinstance(ropes, dict) and "rope_theta" in ropes:
        base["rope_parameters"] = {**ropes, "rope_theta": _THETA}
    variants = {"base": base}
    for label, changes in _changes(known, base).items():
        variants[label] = {**base, **changes}
    return dict(variants)


def _changes(known: Mapping[str, Any], base: Mapping[str, object]) -> dict[str, Fields]:
    changes: dict[str, Fields] = {}
    for name in _KV_HEADS:
        if name in known:
            changes["mqa"], changes["mha"] = {name: 1}, {name: 4}
    if "mqa" not in changes:
        sizes = {name: 3 for name in _HEADS if name in known} | {n: 48 for n in _HIDDEN if n in known}
        changes["3 heads"] = dict(sizes)
    if isinstance(known.get("tie_word_embeddings"), bool):
        is_tied = not known["tie_word_embeddings"]
        changes["tied" if is_tied else "untied"] = {"tie_word_embeddings": is_tied}
    for name, value in known.items():
        if isinstance(value, bool) and _FLAG.fullmatch(name):
            changes[f"{name}={not value}"] = {name: not value}
    if "head_dim" in known:
        changes["head_dim"] = {"head_dim": 12}
    for name in _ACTIVATIONS:
        if name in known:
            changes[f"{name}=relu"] = {name: "relu"}
    if "sliding_window" in known:
        changes["window"] = {"sliding_window": 7, **_window_switches(known)}
    if isinstance(base.get("rope_parameters"), dict):
        ropes = {**dict(known["rope_parameters"]), "rope_theta": _THETA}
        changes["rope-dynamic"] = {
            "rope_parameters": {**ropes, "rope_type": "dynamic", "factor": 2.0},
            "max_position_embeddings": 20,
        }
    return changes


def _window_switches(known: Mapping[str, Any]) -> Fields:
    switches: dict[str, object] = {}
    if "use_sliding_window" in known:
        switches["use_sliding_window"] = True
    if "max_window_layers" in known:
        switches["max_window_layers"] = 0
    if "layer_types" in known:
        switches["layer_types"] = None
    return switches
