"""Llama against transformers, and the traits that it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quire.api.errors import CheckpointError, UnsupportedModelError
from quire.loading.hf_config import read_hf_config
from quire.testing.tiny_models import write_tiny_llama
from quire_models.llama.model import LlamaModel

ROPES: dict[str, dict[str, object]] = {
    "theta": {"rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.5},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn-options": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 50.0,
        "beta_fast": 2,
        "beta_slow": 0.5,
        "mscale": 0.8,
        "mscale_all_dim": 0.5,
        "truncate": False,
    },
    "yarn-attention": {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 16,
        "attention_factor": 1.3,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.5, 2.0, 3.0, 4.0],
        "original_max_position_embeddings": 8,
    },
    "longrope-factor": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.5, 2.0, 3.0, 4.0],
        "original_max_position_embeddings": 16,
        "factor": 4.0,
        "attention_factor": 1.2,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
        "rope_theta": 500.0,
    },
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 1000.0},
}
LENGTH_DEPENDENT = ("dynamic", "longrope", "longrope-factor")
TRAITS: dict[str, dict[str, object]] = {
    "grouped": {},
    "multi-head": {"num_key_value_heads": 4},
    "multi-head-by-null": {"num_key_value_heads": None},
    "multi-query": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "attention-bias": {"attention_bias": True},
    "mlp-bias": {"mlp_bias": True},
    "head-dim": {"head_dim": 10},
    "gelu": {"hidden_act": "gelu"},
    "gelu-tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "relu": {"hidden_act": "relu"},
    "eps": {"rms_norm_eps": 0.1},
}


@pytest.mark.parametrize("trait", TRAITS)
def test_traits_agree_with_transformers(tmp_path: Path, compare: Callable[..., float], trait: str) -> None:
    folder = write_tiny_llama(tmp_path, **TRAITS[trait])
    assert compare(folder) <= 1e-9


def test_float32_agrees_with_transformers(tmp_path: Path, compare: Callable[..., float]) -> None:
    assert compare(write_tiny_llama(tmp_path), dtype="float32") <= 1e-4


@pytest.mark.parametrize("name", ROPES)
def test_rope_types_agree_with_transformers(tmp_path: Path, compare: Callable[..., float], name: str) -> None:
    parameters = {"rope_type": "default", "rope_theta": 10000.0, **ROPES[name]}
    folder = write_tiny_llama(tmp_path, max_position_embeddings=16, rope_parameters=parameters)
    num_steps = 14 if name in LENGTH_DEPENDENT else 2  # past the original length, step by step
    assert compare(folder, prompt_len=20 - num_steps, num_steps=num_steps) <= 1e-9
    config = read_hf_config(folder)
    assert LlamaModel.parse_config(to_older_spelling(config)) == LlamaModel.parse_config(config)


def to_older_spelling(config: dict[str, object]) -> dict[str, object]:
    older = dict(config)
    parameters = dict(config["rope_parameters"])  # type: ignore[call-overload]  # a dict of JSON
    del older["rope_parameters"]
    older["rope_theta"] = parameters.pop("rope_theta")
    parameters["type"] = parameters.pop("rope_type")
    older["rope_scaling"] = None if parameters["type"] == "default" else parameters
    return older


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
@pytest.mark.parametrize("chunk", [None, 5, 1])
def test_long_prompts_agree_however_they_are_chunked(
    tmp_path: Path, compare: Callable[..., float], name: str, chunk: int | None
) -> None:
    parameters = {"rope_theta": 10000.0, **ROPES[name]}
    folder = write_tiny_llama(tmp_path, max_position_embeddings=16, rope_parameters=parameters)
    assert compare(folder, prompt_len=24, num_steps=3, chunk=chunk) <= 1e-9


def test_shards_agree_with_transformers(tmp_path: Path, compare: Callable[..., float]) -> None:
    folder = write_tiny_llama(tmp_path, is_sharded=True)
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert compare(folder) <= 1e-9


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sliding_window": 8}, UnsupportedModelError, "sliding_window"),
        ({"hidden_act": "mish"}, UnsupportedModelError, "'mish' is not served; served are gelu"),
        (
            {"rope_parameters": {"rope_type": "su"}},
            UnsupportedModelError,
            "'su' is not served; served are default",
        ),
        ({"rope_parameters": {"full_attention": {}}}, UnsupportedModelError, "per layer type"),
        ({"partial_rotary_factor": 0.5}, UnsupportedModelError, "rotates 4 of 8"),
        ({"hidden_size": 0}, CheckpointError, "hidden_size is 0"),
        ({"num_hidden_layers": -1}, CheckpointError, "num_hidden_layers is -1"),
        ({"num_key_value_heads": 3}, CheckpointError, "no multiple"),
        ({"vocab_size": None}, CheckpointError, "vocab_size is missing"),
        ({"head_dim": 7}, UnsupportedModelError, "must be even"),
        ({"tie_word_embeddings": "no"}, CheckpointError, "true or false"),
    ],
)
def test_refuses_by_name(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    config = read_hf_config(write_tiny_llama(tmp_path))
    with pytest.raises(error, match=message):
        LlamaModel.parse_config({**config, **changes})


def test_old_extras_of_checkpoints_are_ignored(tmp_path: Path, compare: Callable[..., float]) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_tiny_llama(tmp_path, tie_word_embeddings=True)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = tensors["model.norm.weight"][:4].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    assert compare(folder) <= 1e-9


def test_context_length_and_switch_of_scalings(tmp_path: Path) -> None:
    base = read_hf_config(write_tiny_llama(tmp_path))

    def parse(name: str) -> tuple[int, int | None]:
        config = LlamaModel.parse_config(
            {**base, "max_position_embeddings": 16, "rope_parameters": ROPES[name]}
        )
        return config.max_position_embeddings, config.rope_switch_len

    assert parse("theta") == (16, None)
    assert parse("linear") == (64, None)
    assert parse("dynamic") == (40, 16)
    assert parse("yarn") == (64, None)
    assert parse("longrope") == (16, 8)
    assert parse("llama3") == (16, None)
