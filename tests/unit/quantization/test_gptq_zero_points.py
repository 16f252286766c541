"""Zero points: labels are believed unless the weights clearly say otherwise."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gptq_layers import BOTH, Layer, Layout, load_linear, make_layer, method_of, round_to_nearest

ASYMMETRIC = [Layout(bits, 32, sym=False, zero_offset=offset) for bits in (2, 3, 4) for offset in (0, 1)]
SYMMETRIC = [Layout(bits, 32, zero_offset=offset) for bits in (2, 3, 4, 8) for offset in (0, 1)]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records if record.name == "quire"]
    return [message for message in messages if "labels the checkpoint" in message]


@pytest.mark.parametrize("plugins", [("gptq",), BOTH])
@pytest.mark.parametrize("layout", [*ASYMMETRIC, *SYMMETRIC], ids=str)
def test_a_lie_is_seen_through_and_said_once(
    tmp_path: Path, layout: Layout, plugins: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    layers = [round_to_nearest(layout, seed) for seed in range(2)]
    method = method_of(replace(layout, zero_offset=1 - layout.zero_offset).config(), plugins=plugins)
    x = torch.randn(2, layout.inputs, dtype=torch.float64)
    with caplog.at_level(logging.WARNING, "quire"):
        for layer in layers:
            loaded = load_linear(tmp_path, method, {"a": layer})
            torch.testing.assert_close(loaded.linear(x), x @ layer.weight.t(), rtol=1e-9, atol=1e-9)
    label = ("gptq_v2", "gptq")[1 - layout.zero_offset]
    (warning,) = warnings_of(caplog)
    assert f"labels the checkpoint {label}, and its zero points" in warning


@pytest.mark.parametrize("layout", [*ASYMMETRIC, *SYMMETRIC], ids=str)
@pytest.mark.parametrize("make", [make_layer, round_to_nearest])
def test_the_truth_is_not_doubted(
    tmp_path: Path, layout: Layout, make: Callable[[Layout, int], Layer], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "quire"):
        for seed in range(5):
            load_linear(tmp_path, method_of(layout.config()), {"a": make(layout, seed)})
    assert not warnings_of(caplog)


@pytest.mark.parametrize("plugins", [("gptq",), BOTH])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("make", [make_layer, round_to_nearest])
def test_gptqmodels_zero_points_borrow_from_their_neighbours(
    tmp_path: Path, bits: int, make: Callable[[Layout, int], Layer], plugins: tuple[str, ...]
) -> None:
    layout = Layout(bits, 16, sym=False, by_word=True)
    layer = make(layout, 0)
    by_field = make(replace(layout, by_word=False), 0).tensors["qzeros"]
    assert make is round_to_nearest or not torch.equal(layer.tensors["qzeros"], by_field)
    config = layout.config(meta={"quantizer": ["optimum:1.24.0", "gptqmodel:7.6.0"]})
    loaded = load_linear(tmp_path, method_of(config, plugins=plugins), {"a": layer})
    x = torch.randn(2, layout.inputs, dtype=torch.float64)
    torch.testing.assert_close(loaded.linear(x), x @ layer.weight.t(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("by_word", [False, True])
def test_weights_tell_whether_zero_points_borrow(
    tmp_path: Path, by_word: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no tool is named."""
    layout = Layout(2, 16, sym=False, inputs=512, outputs=512, by_word=by_word)
    layer = round_to_nearest(layout)
    other = round_to_nearest(replace(layout, by_word=not by_word))
    assert not torch.equal(layer.tensors["qzeros"], other.tensors["qzeros"])
    with caplog.at_level(logging.WARNING, "quire"):
        loaded = load_linear(tmp_path, method_of(layout.config(), plugins=("gptq",)), {"a": layer})
    x = torch.randn(2, layout.inputs, dtype=torch.float64)
    torch.testing.assert_close(loaded.linear(x), x @ layer.weight.t(), rtol=1e-9, atol=1e-9)
    assert not warnings_of(caplog)


def test_too_little_evidence_is_read_field_by_field(tmp_path: Path) -> None:
    layout = Layout(2, 16, sym=False)
    layer = make_layer(layout)
    loaded = load_linear(tmp_path, method_of(layout.config(), plugins=("gptq",)), {"a": layer})
    x = torch.randn(2, layout.inputs, dtype=torch.float64)
    torch.testing.assert_close(loaded.linear(x), x @ layer.weight.t(), rtol=1e-9, atol=1e-9)


def test_zero_points_that_are_not_symmetric_though_the_config_says_so(tmp_path: Path) -> None:
    """sym: true over zero points that are not: they are used, with the labelled offset."""
    layout = Layout(sym=False)
    layer = make_layer(layout)
    loaded = load_linear(tmp_path, method_of(layout.config(sym=True)), {"a": layer})
    x = torch.randn(2, layout.inputs, dtype=torch.float64)
    torch.testing.assert_close(loaded.linear(x), x @ layer.weight.t(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "layer",
    [
        round_to_nearest(Layout(8, sym=False)),
        make_layer(Layout(4, sym=False, outputs=32)),
        round_to_nearest(Layout(4, -1, sym=False, outputs=8)),
    ],
    ids=["eight bits", "weights that do not lie about zero", "few groups"],
)
def test_too_little_evidence_leaves_the_label(
    tmp_path: Path, layer: Layer, caplog: pytest.LogCaptureFixture
) -> None:
    inputs, outputs = layer.integers.shape
    bits = layer.tensors["qweight"].shape[0] * 32 // inputs
    group_size = inputs // layer.tensors["scales"].shape[0]
    layout = Layout(bits, group_size, sym=False, zero_offset=0)
    with caplog.at_level(logging.WARNING, "quire"):
        loaded = load_linear(tmp_path, method_of(layout.config()), {"a": layer})
    assert not warnings_of(caplog)
    x = torch.eye(inputs, dtype=torch.float64)
    assert not torch.allclose(loaded.linear(x), layer.weight.t())
    assert loaded.linear(x).shape == (inputs, outputs)
