"""MPT against transformers, and against a reference of its own for what transformers passes over.

The port of transformers computes its softmax in float32 whatever the dtype, so it tells apart no
more than about 1e-6; the reference is float64 throughout.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from quire.api.errors import CheckpointError, UnsupportedModelError
from quire.loading.hf_config import read_hf_config
from quire.plugins import PluginHost
from quire.testing.forward import SequenceForward
from quire.testing.tiny_models import write_tiny_mpt
from quire_models.mpt.model import MptModel

COMMON: dict[str, dict[str, Any]] = {
    "plain": {},
    "six-heads": {"n_heads": 6, "d_model": 48},
    "three-heads": {"n_heads": 3, "d_model": 36},
    "one-head": {"n_heads": 1},
    "clipped": {"attn_config": {"clip_qkv": 0.5}},
    "clipped-at-zero": {"attn_config": {"clip_qkv": 0.0}},
    "softmax-scale": {"attn_config": {"softmax_scale": 0.1}},
    "untied": {"tie_word_embeddings": False},
    "eps": {"layer_norm_epsilon": 0.1},
}
OWN: dict[str, dict[str, Any]] = {
    "alibi-bias-max": {"attn_config": {"alibi_bias_max": 16}, "n_heads": 6, "d_model": 48},
    "logit-scale": {"logit_scale": 0.5},
    "logit-scale-by-name": {"logit_scale": "inv_sqrt_d_model"},
    "learned-positions": {"attn_config": {"alibi": False}},
    "expansion": {"expansion_ratio": 2},
}
"""Traits that transformers 5 reads from no configuration."""


def write(folder: Path, traits: dict[str, Any]) -> Path:
    """A tiny MPT whose tensors are what MosaicML's own code would have written for its traits."""
    write_tiny_mpt(folder, **traits)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    config = read_hf_config(folder)
    if traits.get("attn_config", {}).get("alibi") is False:
        noise = torch.randn(64, 32, generator=torch.Generator().manual_seed(5))
        tensors["transformer.wpe.weight"] = 0.25 * noise
    if "expansion_ratio" in traits:
        inner = config["d_model"] * traits["expansion_ratio"]
        for name, tensor in tensors.items():
            if "up_proj" in name:
                tensors[name] = tensor[:inner].clone()
            elif "down_proj" in name:
                tensors[name] = tensor[:, :inner].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def reference_logits(folder: Path, ids: list[int]) -> Tensor:
    """llm-foundry's MPT in float64, straight from the tensors and the config.json."""
    config: dict[str, Any] = read_hf_config(folder)
    attention = config["attn_config"]
    weights = load_file(folder / "model.safetensors")
    w = {name.removeprefix("transformer."): tensor.double() for name, tensor in weights.items()}
    size, heads, length = config["d_model"], config["n_heads"], len(ids)
    x = w["wte.weight"][ids]
    distance = torch.arange(length)[:, None] - torch.arange(length)
    bias = torch.zeros(heads, length, length, dtype=torch.float64)
    if attention["alibi"]:
        slopes = torch.tensor(MptModel.parse_config(config).alibi_slopes, dtype=torch.float64)
        bias = -slopes[:, None, None] * distance
    else:
        x = x + w["wpe.weight"][:length]
    bias = bias.masked_fill(distance < 0, float("-inf"))
    scale = attention["softmax_scale"] or (size // heads) ** -0.5

    def norm(values: Tensor, name: str) -> Tensor:
        return F.layer_norm(values, (size,), w[f"{name}.weight"], None, config["layer_norm_epsilon"])

    for index in range(config["n_layers"]):
        layer = f"blocks.{index}"
        qkv = norm(x, f"{layer}.norm_1") @ w[f"{layer}.attn.Wqkv.weight"].T
        if limit := attention["clip_qkv"]:
            qkv = qkv.clamp(-limit, limit)
        query, key, value = (part.view(length, heads, -1).transpose(0, 1) for part in qkv.chunk(3, dim=-1))
        scores = query @ key.transpose(1, 2) * scale + bias
        mixed = (scores.softmax(-1) @ value).transpose(0, 1).reshape(length, size)
        x = x + mixed @ w[f"{layer}.attn.out_proj.weight"].T
        inner = F.gelu(norm(x, f"{layer}.norm_2") @ w[f"{layer}.ffn.up_proj.weight"].T)
        x = x + inner @ w[f"{layer}.ffn.down_proj.weight"].T
    logits = norm(x, "norm_f") @ w.get("lm_head.weight", w["wte.weight"]).T
    factor = {None: 1.0, "inv_sqrt_d_model": size**-0.5}.get(config["logit_scale"], config["logit_scale"])
    return logits * factor


@pytest.mark.parametrize("trait", COMMON)
def test_traits_agree_with_transformers(tmp_path: Path, compare: Callable[..., float], trait: str) -> None:
    assert compare(write(tmp_path, COMMON[trait])) <= 1e-5


def test_float32_agrees_with_transformers(tmp_path: Path, compare: Callable[..., float]) -> None:
    assert compare(write(tmp_path, COMMON["six-heads"]), dtype="float32") <= 1e-4


@pytest.mark.parametrize("trait", [*COMMON, *OWN])
@pytest.mark.parametrize("chunk", [17, 5, 1])
def test_traits_agree_with_the_reference(tmp_path: Path, host: PluginHost, trait: str, chunk: int) -> None:
    folder = write(tmp_path, {**COMMON, **OWN}[trait])
    ids = torch.randint(0, 97, (17,), generator=torch.Generator().manual_seed(1)).tolist()
    sequence = SequenceForward(folder, "float64", max_len=64, host=host)
    found = torch.cat([sequence.logits(ids[start : start + chunk], 17) for start in range(0, 17, chunk)])
    expected = reference_logits(folder, ids)
    assert expected.std() > 0.1
    assert float((found - expected).abs().max()) <= 1e-12


@pytest.mark.parametrize("bias_max", [8, 16])
@pytest.mark.parametrize("heads", range(1, 14))
def test_slopes_are_transformers(tmp_path: Path, heads: int, bias_max: int) -> None:
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    config = {"n_heads": heads, "d_model": heads * 8, "attn_config": {"alibi_bias_max": bias_max}}
    base = {"vocab_size": 97, "n_layers": 2, "max_seq_len": 64}
    slopes = MptModel.parse_config({**base, **config}).alibi_slopes
    expected = -build_mpt_alibi_tensor(heads, 2, bias_max)[:, 0, 0]
    assert slopes == pytest.approx(expected.tolist(), rel=1e-6)


def test_reads_mosaicmls_spelling_of_the_architecture(tmp_path: Path, host: PluginHost) -> None:
    folder = write(tmp_path, {})
    expected = reference_logits(folder, [5, 6, 7])
    config = {**read_hf_config(folder), "architectures": ["MPTForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    found = SequenceForward(folder, "float64", max_len=64, host=host).logits([5, 6, 7])
    assert float((found - expected).abs().max()) <= 1e-12


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"attn_config": {"qk_ln": True}}, UnsupportedModelError, "attn_config.qk_ln"),
        ({"attn_config": {"qk_gn": True}}, UnsupportedModelError, "attn_config.qk_gn"),
        ({"attn_config": {"prefix_lm": True}}, UnsupportedModelError, "attn_config.prefix_lm"),
        (
            {"attn_config": {"attn_uses_sequence_id": True}},
            UnsupportedModelError,
            "attn_config.attn_uses_sequence_id",
        ),
        ({"attn_config": {"rope": True, "alibi": False}}, UnsupportedModelError, "attn_config.rope"),
        (
            {"attn_config": {"sliding_window_size": 8}},
            UnsupportedModelError,
            "attn_config.sliding_window_size",
        ),
        (
            {"attn_config": {"attn_type": "multiquery_attention"}},
            UnsupportedModelError,
            "attn_type 'multiquery_attention' is not served",
        ),
        (
            {"attn_config": {"alibi": False}, "learned_pos_emb": False},
            UnsupportedModelError,
            "neither attn_config.alibi nor learned_pos_emb",
        ),
        ({"no_bias": False}, UnsupportedModelError, "no_bias: false"),
        ({"block_overrides": {"order": []}}, UnsupportedModelError, "block_overrides"),
        ({"norm_type": "rmsnorm"}, UnsupportedModelError, "norm_type 'rmsnorm'"),
        ({"ffn_config": {"ffn_type": "mptglu"}}, UnsupportedModelError, "ffn_type 'mptglu'"),
        ({"attn_config": {"clip_qkv": -1.0}}, CheckpointError, "clip_qkv is -1.0"),
        ({"attn_config": {"softmax_scale": 0.0}}, CheckpointError, "softmax_scale is 0.0"),
        ({"logit_scale": "sqrt"}, CheckpointError, "logit_scale is 'sqrt'"),
        ({"n_heads": 5}, CheckpointError, "d_model 32 is no multiple of n_heads 5"),
        ({"max_seq_len": 0}, CheckpointError, "max_seq_len is 0"),
    ],
)
def test_refuses_by_name(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    config = read_hf_config(write_tiny_mpt(tmp_path))
    with pytest.raises(error, match=message):
        MptModel.parse_config({**config, **changes})


def test_the_longest_sequence_limits_the_context(tmp_path: Path) -> None:
    config = MptModel.parse_config(read_hf_config(write_tiny_mpt(tmp_path)))
    assert (config.max_position_embeddings, config.rope_switch_len) == (64, None)
