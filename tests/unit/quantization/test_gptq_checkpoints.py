"""Tool-made GPTQ checkpoints: their logits, their integers, and labels that lie."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from gptq_layers import BOTH, host_of, unpack_stream
from quantized_checkpoints import DATA, TOLERANCES, expected
from quire.nn.linear import Linear
from quire.nn.tiles import unpack_tiles
from quire.testing.forward import SequenceForward
from quire_quantization.gptq.packing import unpack, unpack_zeros

BORROWING = "tiny-gptq-w2g16-asym"
NAMES = tuple(name for name in TOLERANCES if name.startswith("gptq"))
METHODS = {"gptq": ("llama", "gptq"), "gptq-marlin": ("llama", *BOTH)}
Checkpoint = Callable[[str], Path]


def error(model: SequenceForward, name: str) -> float:
    ids, logits = expected(name)
    found = model.logits(ids).float()
    return float((found - logits).norm() / logits.norm())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_tools(quantized_checkpoint: Checkpoint, name: str, method: str) -> None:
    model = SequenceForward(quantized_checkpoint(name), host=host_of(METHODS[method]))
    assert error(model, name) <= TOLERANCES[name]
    kept = {module.method for module in model.modules if module.name != "lm_head"}
    assert kept == {"gptq" if "w3" in name else method}
    head = next(module for module in model.modules if module.name == "lm_head")
    assert (head.method, head.reason) == ("unquantized", "lm_head is false")


@pytest.mark.parametrize("method", METHODS)
def test_zero_points_that_borrow(method: str) -> None:
    """Read field by field, they lead to an error of 4e-2."""
    model = SequenceForward(DATA / BORROWING, host=host_of(METHODS[method]))
    assert error(model, BORROWING) <= 5e-3
    assert {module.method for module in model.modules if module.name != "lm_head"} == {"gptq"}


def test_method_named_in_the_settings(quantized_checkpoint: Checkpoint) -> None:
    folder = quantized_checkpoint(NAMES[0])
    for setting, method in (
        ("gptq", "gptq-marlin"),
        ("gptq-marlin", "gptq-marlin"),
        ("marlin", "gptq-marlin"),
    ):
        model = SequenceForward(folder, host=host_of(METHODS["gptq-marlin"]), quantization=setting)
        assert model.modules[0].method == method


@pytest.mark.parametrize("name", NAMES)
def test_integers_are_bit_equal(quantized_checkpoint: Checkpoint, name: str) -> None:
    bits = int(name.partition("-w")[2][0])
    folder = quantized_checkpoint(name)
    with safe_open(folder / "own.safetensors", "pt") as file:
        # a safetensors file is no dict
        stored = {key: file.get_tensor(key) for key in file.keys() if "layers.1." in key}  # noqa: SIM118
    model = SequenceForward(folder, host=host_of(METHODS["gptq-marlin"]))
    sources = {key.rpartition(".")[0] for key in stored if key.endswith("qweight")}
    assert len(sources) == 7
    for source in sources:
        integers = unpack_stream(stored[f"{source}.qweight"], bits)
        assert np.array_equal(unpack(stored[f"{source}.qweight"], bits).numpy(), integers)
        zeros = stored[f"{source}.qzeros"]
        assert np.array_equal(unpack_zeros(zeros, bits, 0).numpy(), unpack_stream(zeros.t(), bits).T)
    if bits == 3:
        return
    found = tiles_by_module(model, bits)
    for source in sources:
        integers = unpack_stream(stored[f"{source}.qweight"], bits)
        order = np.argsort(stored[f"{source}.g_idx"].numpy(), kind="stable")
        assert np.array_equal(found[source], integers.T[:, order])


def tiles_by_module(model: SequenceForward, bits: int) -> dict[str, np.ndarray]:
    """The integers of the tiles of each module, [N, K]."""
    names = (module.name for module in model.modules)
    found = {}
    for linear in model.built.model.modules():
        if not isinstance(linear, Linear):
            continue
        rows = [
            unpack_tiles(weights.tiles.weight, bits)[: shape.out_features]
            for weights, (_, shape) in zip(linear.weights, linear.runs, strict=True)
            if hasattr(weights, "tiles")
        ]
        widths = [width for _, width in linear.shape.parts]
        parts = torch.cat(rows).split(widths) if rows else [torch.empty(0)] * len(widths)
        found |= {next(names): part.numpy() for part in parts}
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["gptq-w4g128-sym", "gptqv2-w4g32-asym", "gptq-w3g32-sym"])
def test_labels_that_lie_are_seen_through(
    quantized_checkpoint: Checkpoint,
    name: str,
    method: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for path in quantized_checkpoint(name).iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = json.loads((tmp_path / "config.json").read_text())
    lie = {"gptq": "gptq_v2", "gptq_v2": "gptq"}[config["quantization_config"]["checkpoint_format"]]
    config["quantization_config"] |= {"checkpoint_format": lie, "format": lie}
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING, "quire"):
        model = SequenceForward(tmp_path, host=host_of(METHODS[method]))
    assert error(model, name) <= TOLERANCES[name]
    warnings = [
        record.getMessage() for record in caplog.records if "labels the checkpoint" in record.getMessage()
    ]
    assert len(warnings) == 1
    assert f"labels the checkpoint {lie}" in warnings[0]


@pytest.mark.parametrize("method", METHODS)
def test_an_honest_label_is_not_doubted(
    quantized_checkpoint: Checkpoint, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "quire"):
        for name in NAMES:
            SequenceForward(quantized_checkpoint(name), host=host_of(METHODS[method]))
    assert "labels" not in caplog.text


@pytest.mark.parametrize("name", ["gptq-w4g128-sym", "gptq-w8g128-sym", "gptq-w4g128-sym-desc"])
def test_bfloat16_with_the_native_kernels(quantized_checkpoint: Checkpoint, name: str) -> None:
    """Whatever kernels there are: near the logits of float32, as far as bfloat16 goes."""
    host = host_of(("llama", *BOTH, "native-kernels"))
    model = SequenceForward(quantized_checkpoint(name), "bfloat16", host=host)
    assert model.built.dtype == torch.bfloat16
    assert error(model, name) < 4e-2
