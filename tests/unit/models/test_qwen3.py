"""Qwen3 against transformers: normed queries and keys, windows in some layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quire.api.errors import CheckpointError, UnsupportedModelError
from quire.loading.hf_config import read_hf_config
from quire.testing.tiny_models import write_tiny_qwen3
from quire_models.qwen3.model import Qwen3Model

MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
WINDOW: dict[str, object] = {"sliding_window": 4, "use_sliding_window": True}
TRAITS: dict[str, dict[str, object]] = {
    "grouped": {},
    "multi-query": {"num_key_value_heads": 1},
    "multi-head": {"num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "head-dim": {"head_dim": 20},
    "attention-bias": {"attention_bias": True},
    "eps": {"rms_norm_eps": 0.1},
    "gelu": {"hidden_act": "gelu"},
    "window-unused": {"sliding_window": 4, "use_sliding_window": False, "max_window_layers": 0},
    "window-everywhere": {**WINDOW, "max_window_layers": 0},
    "window-last": {**WINDOW, "max_window_layers": 1},
    "window-none": {**WINDOW, "max_window_layers": 2},
    "window-mixed": {**WINDOW, "num_hidden_layers": 3, "layer_types": MIXED, "head_dim": 12},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
}


@pytest.mark.parametrize("trait", TRAITS)
def test_traits_agree_with_transformers(tmp_path: Path, compare: Callable[..., float], trait: str) -> None:
    folder = write_tiny_qwen3(tmp_path, **TRAITS[trait])
    assert compare(folder, prompt_len=10, num_steps=6) <= 1e-9


@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_windows_reach_over_chunk_boundaries(
    tmp_path: Path, compare: Callable[..., float], chunk: int
) -> None:
    folder = write_tiny_qwen3(tmp_path, **TRAITS["window-mixed"])
    assert compare(folder, prompt_len=18, num_steps=3, chunk=chunk) <= 1e-9


def test_float32_agrees_with_transformers(tmp_path: Path, compare: Callable[..., float]) -> None:
    folder = write_tiny_qwen3(tmp_path, **TRAITS["window-mixed"])
    assert compare(folder, dtype="float32") <= 1e-4


def test_missing_keys_are_transformers_defaults(tmp_path: Path) -> None:
    config = read_hf_config(write_tiny_qwen3(tmp_path, num_attention_heads=32))
    for name in ("head_dim", "num_key_value_heads", "sliding_window", "layer_types", "max_window_layers"):
        del config[name]
    parsed = Qwen3Model.parse_config({**config, "use_sliding_window": True, "num_hidden_layers": 30})
    assert (parsed.heads.head_size, parsed.heads.num_kv_heads) == (128, 32)
    assert parsed.windows == (None,) * 28 + (4096,) * 2


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layer_types": ["full_attention"]}, CheckpointError, "layer_types has 1 entries"),
        (
            {"layer_types": ["full_attention", "linear_attention"]},
            UnsupportedModelError,
            "'linear_attention' is not served",
        ),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            CheckpointError,
            "needs a sliding_window in use",
        ),
        ({"hidden_act": "mish"}, UnsupportedModelError, "'mish' is not served"),
        ({"num_key_value_heads": 3}, CheckpointError, "no multiple"),
        ({"head_dim": 7}, UnsupportedModelError, "must be even"),
    ],
)
def test_refuses_by_name(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    config = read_hf_config(write_tiny_qwen3(tmp_path))
    with pytest.raises(error, match=message):
        Qwen3Model.parse_config({**config, **changes})
