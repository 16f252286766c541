"""GPT-2 against transformers: transposed weights, its scales, its checkpoints' spellings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire.api.errors import CheckpointError, UnsupportedModelError
from quire.loading.hf_config import read_hf_config
from quire.testing.tiny_models import write_tiny_gpt2
from quire_models.gpt2.model import GPT2Model

TRAITS: dict[str, dict[str, object]] = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "inner-size": {"n_inner": 40},
    "by-layer": {"scale_attn_by_inverse_layer_idx": True},
    "unscaled": {"scale_attn_weights": False},
    "unscaled-by-layer": {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    "reordered": {"reorder_and_upcast_attn": True},
    "relu": {"activation_function": "relu"},
    "gelu": {"activation_function": "gelu"},
    "gelu-fast": {"activation_function": "gelu_fast"},
    "silu": {"activation_function": "silu"},
    "eps": {"layer_norm_epsilon": 0.1},
    "one-head": {"n_head": 1},
}


@pytest.mark.parametrize("trait", TRAITS)
def test_traits_agree_with_transformers(tmp_path: Path, compare: Callable[..., float], trait: str) -> None:
    assert compare(write_tiny_gpt2(tmp_path, **TRAITS[trait])) <= 1e-9


def test_float32_agrees_with_transformers(tmp_path: Path, compare: Callable[..., float]) -> None:
    assert compare(write_tiny_gpt2(tmp_path), dtype="float32") <= 1e-4


@pytest.mark.parametrize("has_prefix", [False, True])
def test_reads_both_spellings_and_ignores_masks(
    tmp_path: Path, compare: Callable[..., float], has_prefix: bool
) -> None:
    folder = write_tiny_gpt2(tmp_path)
    path = folder / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    for index in range(2):
        tensors[f"h.{index}.attn.bias"] = torch.ones(1, 1, 4, 4)
        tensors[f"h.{index}.attn.masked_bias"] = torch.tensor(-1e4)
    if has_prefix:
        tensors = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    assert compare(folder) <= 1e-9


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"add_cross_attention": True}, UnsupportedModelError, "add_cross_attention"),
        ({"activation_function": "tanh"}, UnsupportedModelError, "'tanh' is not served"),
        ({"n_head": 5}, CheckpointError, "n_embd 32 is no multiple of n_head 5"),
        ({"n_positions": 0}, CheckpointError, "n_positions is 0"),
    ],
)
def test_refuses_by_name(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    config = read_hf_config(write_tiny_gpt2(tmp_path))
    with pytest.raises(error, match=message):
        GPT2Model.parse_config({**config, **changes})


def test_learned_positions_limit_the_context(tmp_path: Path) -> None:
    config = GPT2Model.parse_config(read_hf_config(write_tiny_gpt2(tmp_path)))
    assert (config.max_position_embeddings, config.rope_switch_len) == (64, None)
