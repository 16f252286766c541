"""Checkpoints of llm-compressor: logits, integers, memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ct_layers import unpack_bits
from gptq_layers import host_of
from quantized_checkpoints import DATA, TOLERANCES, expected
from quire.nn.linear import Linear
from quire.nn.tiles import unpack_tiles, untile_columns
from quire.testing.forward import SequenceForward

Folder = Callable[[str], Path]

GROUPED = "ct-w4a16-g128-gptq"
ACT_ORDER = "tiny-ct-w4a16-g32-actorder"
TINY = {ACT_ORDER: 1e-5, "tiny-ct-fp8-dynamic": 2e-2, "tiny-ct-w8a8-dynamic": 2e-2}
"""The tool's own logits in float32 and in float64 differ by 1e-2 where inputs are rounded by row."""


def forward(folder: Path) -> SequenceForward:
    return SequenceForward(folder, host=host_of(("llama", "compressed-tensors")))


def error(folder: Path, name: str) -> float:
    ids, logits = expected(name)
    return float((forward(folder).logits(ids) - logits).norm() / logits.norm())


def test_the_tools_own_logits(quantized_checkpoint: Folder) -> None:
    assert error(quantized_checkpoint(GROUPED), GROUPED) < TOLERANCES[GROUPED]


@pytest.mark.parametrize("name", TINY)
def test_the_tools_own_logits_of_small_models(name: str) -> None:
    assert error(DATA / name, name) < TINY[name]


@pytest.mark.parametrize("name", [GROUPED, ACT_ORDER])
def test_integers_are_those_of_the_checkpoint(name: str, quantized_checkpoint: Folder) -> None:
    folder = quantized_checkpoint(name) if name == GROUPED else DATA / name
    stored = load_file(DATA / name / "model.safetensors")
    model = forward(folder).built.model
    count = sum(key.endswith("down_proj.weight_packed") for key in stored)
    for index in range(count):
        module = model.get_submodule(f"layers.{index}.mlp.down")
        prefix = f"model.layers.{index}.mlp.down_proj."
        shape = stored[prefix + "weight_shape"].tolist()
        integers = unpack_bits(stored[prefix + "weight_packed"], 4, shape[1])
        buffers = {key.rpartition(".")[2]: buffer for key, buffer in module.named_buffers()}
        groups = torch.arange(shape[1]) // (shape[1] // buffers["scales"].shape[1])
        if name == ACT_ORDER:
            order = buffers["input_order"].long()
            integers = integers[:, order.numpy()]
            assert stored[prefix + "weight_g_idx"][order].long().equal(groups)
        assert np.array_equal(unpack_tiles(buffers["weight"], 4).numpy(), integers)
        assert untile_columns(buffers["scales"]).equal(stored[prefix + "weight_scale"])
    assert count == (4 if name == GROUPED else 2)


@pytest.mark.parametrize("name", [GROUPED, *TINY])
def test_what_is_kept_is_no_larger_than_on_disk(name: str, quantized_checkpoint: Folder) -> None:
    folder = quantized_checkpoint(name) if name == GROUPED else DATA / name
    stored = load_file(DATA / name / "model.safetensors")
    on_disk = sum(tensor.nbytes for key, tensor in stored.items() if "_proj." in key)
    linears = [module for module in forward(folder).built.model.modules() if isinstance(module, Linear)]
    kept = sum(buffer.nbytes for module in linears for buffer in module.buffers())
    assert 0 < kept <= 1.1 * on_disk
