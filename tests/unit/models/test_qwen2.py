"""Qwen2 against transformers, windows above all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quire.api.errors import CheckpointError, UnsupportedModelError
from quire.loading.hf_config import read_hf_config
from quire.testing.tiny_models import write_tiny_qwen2
from quire_models.qwen2.model import Qwen2Model

TRAITS: dict[str, dict[str, object]] = {
    "grouped": {},
    "multi-query": {"num_key_value_heads": 1},
    "multi-head": {"num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "head-dim": {"head_dim": 12},
    "window-unused": {"sliding_window": 4, "use_sliding_window": False, "max_window_layers": 0},
    "window-everywhere": {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 0},
    "window-last": {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1},
    "window-none": {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 2},
    "window-listed": {
        "sliding_window": 3,
        "use_sliding_window": True,
        "layer_types": ["sliding_attention", "full_attention"],
    },
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
    folder = write_tiny_qwen2(tmp_path, **TRAITS[trait])
    assert compare(folder, prompt_len=10, num_steps=6) <= 1e-9


def test_float32_agrees_with_transformers(tmp_path: Path, compare: Callable[..., float]) -> None:
    assert compare(write_tiny_qwen2(tmp_path), dtype="float32") <= 1e-4


def test_windows_come_from_the_config_without_layer_types(tmp_path: Path) -> None:
    base = read_hf_config(write_tiny_qwen2(tmp_path, num_hidden_layers=3))
    config = {
        **base,
        "layer_types": None,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    }
    assert Qwen2Model.parse_config(config).windows == (None, 5, 5)
    assert Qwen2Model.parse_config({**config, "use_sliding_window": False}).windows == (None, None, None)
    assert Qwen2Model.parse_config({**config, "max_window_layers": None}).windows == (None, None, None)


@pytest.mark.parametrize(
    ("types", "error", "message"),
    [
        (["full_attention"], CheckpointError, "layer_types has 1 entries"),
        (["full_attention", "linear_attention"], UnsupportedModelError, "'linear_attention' is not served"),
        (["full_attention", "sliding_attention"], CheckpointError, "needs a sliding_window"),
    ],
)
def test_refuses_odd_layer_types(
    tmp_path: Path, types: list[str], error: type[Exception], message: str
) -> None:
    config = read_hf_config(write_tiny_qwen2(tmp_path))
    with pytest.raises(error, match=message):
        Qwen2Model.parse_config({**config, "layer_types": types})
