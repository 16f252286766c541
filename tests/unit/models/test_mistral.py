"""Mistral against transformers: its window above all, and what missing keys mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quire.api.errors import CheckpointError, UnsupportedModelError
from quire.loading.hf_config import read_hf_config
from quire.testing.tiny_models import write_tiny_mistral
from quire_models.mistral.model import MistralModel

TRAITS: dict[str, dict[str, object]] = {
    "default-window": {},
    "no-window": {"sliding_window": None},
    "window": {"sliding_window": 4},
    "multi-query": {"num_key_value_heads": 1, "sliding_window": 4},
    "multi-head": {"num_key_value_heads": 4},
    "head-dim": {"head_dim": 12, "sliding_window": 5},
    "tied": {"tie_word_embeddings": True},
    "gelu": {"hidden_act": "gelu"},
    "eps": {"rms_norm_eps": 0.1},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "sliding_window": 4},
}


@pytest.mark.parametrize("trait", TRAITS)
def test_traits_agree_with_transformers(tmp_path: Path, compare: Callable[..., float], trait: str) -> None:
    folder = write_tiny_mistral(tmp_path, **TRAITS[trait])
    assert compare(folder, prompt_len=10, num_steps=6) <= 1e-9


@pytest.mark.parametrize("window", [1, 2, 3, 11, 12, 13])
def test_a_query_sees_as_many_tokens_as_in_transformers(
    tmp_path: Path, compare: Callable[..., float], window: int
) -> None:
    """A window of 1 is itself alone; 12 is the prompt's length, where nothing is hidden yet."""
    folder = write_tiny_mistral(tmp_path, sliding_window=window)
    assert compare(folder, prompt_len=12, num_steps=0 if window == 1 else 3) <= 1e-9


@pytest.mark.parametrize("chunk", [1, 3, 4, 5, 7])
def test_windows_reach_over_chunk_boundaries(
    tmp_path: Path, compare: Callable[..., float], chunk: int
) -> None:
    folder = write_tiny_mistral(tmp_path, sliding_window=4)
    assert compare(folder, prompt_len=18, num_steps=3, chunk=chunk) <= 1e-9


def test_float32_agrees_with_transformers(tmp_path: Path, compare: Callable[..., float]) -> None:
    folder = write_tiny_mistral(tmp_path, sliding_window=4)
    assert compare(folder, dtype="float32") <= 1e-4


def test_missing_keys_are_transformers_defaults(tmp_path: Path) -> None:
    config = read_hf_config(write_tiny_mistral(tmp_path, num_attention_heads=8, sliding_window=None))
    assert MistralModel.parse_config(config).window is None
    for name in ("sliding_window", "num_key_value_heads"):
        del config[name]
    parsed = MistralModel.parse_config(config)
    assert (parsed.window, parsed.heads.num_kv_heads) == (4096, 8)


def test_layer_types_that_agree_with_the_window_are_served(tmp_path: Path) -> None:
    config = read_hf_config(write_tiny_mistral(tmp_path, sliding_window=5))
    config["layer_types"] = ["sliding_attention"] * 2
    assert MistralModel.parse_config(config).window == 5


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"attention_bias": True}, UnsupportedModelError, "attention_bias is not served"),
        ({"mlp_bias": True}, UnsupportedModelError, "mlp_bias is not served"),
        (
            {"layer_types": ["sliding_attention", "full_attention"]},
            UnsupportedModelError,
            "'full_attention' in layer_types",
        ),
        ({"sliding_window": 0}, CheckpointError, "sliding_window is 0"),
        ({"hidden_act": "mish"}, UnsupportedModelError, "'mish' is not served"),
        ({"num_key_value_heads": 3}, CheckpointError, "no multiple"),
    ],
)
def test_refuses_by_name(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    config = read_hf_config(write_tiny_mistral(tmp_path))
    with pytest.raises(error, match=message):
        MistralModel.parse_config({**config, **changes})
