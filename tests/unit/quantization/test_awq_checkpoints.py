"""The tool-made AWQ checkpoint: its logits, its integers, and other spellings of its config."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from awq_layers import GEMM_COLUMNS, unpack_columns
from gptq_layers import host_of
from quantized_checkpoints import TOLERANCES, expected
from quire.api.errors import QuantizationError
from quire.nn.linear import Linear
from quire.nn.tiles import unpack_tiles, untile_columns
from quire.testing.forward import SequenceForward
from quire_quantization.awq.packing import unpack_gemm

NAME = "awq-gemm-w4g128-autoawq"
METHODS = {"awq": ("llama", "awq"), "awq-marlin": ("llama", "awq", "awq-marlin")}
Checkpoint = Callable[[str], Path]


def error(model: SequenceForward) -> float:
    ids, logits = expected(NAME)
    return float((model.logits(ids).float() - logits).norm() / logits.norm())


def respelled(folder: Path, target: Path, config: dict[str, object]) -> Path:
    """The same checkpoint with another quantization_config."""
    for path in folder.iterdir():
        if path.name != "config.json":
            (target / path.name).symlink_to(path)
    hf_config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(hf_config | {"quantization_config": config}))
    return target


@pytest.mark.parametrize("method", METHODS)
def test_logits_are_the_tools(quantized_checkpoint: Checkpoint, method: str) -> None:
    model = SequenceForward(quantized_checkpoint(NAME), host=host_of(METHODS[method]))
    assert error(model) <= TOLERANCES[NAME]
    kept = {(module.method, module.reason) for module in model.modules if module.name != "lm_head"}
    assert kept == {(method, "")}
    head = next(module for module in model.modules if module.name == "lm_head")
    assert (head.method, head.reason) == ("unquantized", "not quantized in the checkpoint")


def test_method_named_in_the_settings(quantized_checkpoint: Checkpoint) -> None:
    host = host_of(METHODS["awq-marlin"])
    for setting in ("awq", "awq_marlin", "marlin"):
        model = SequenceForward(quantized_checkpoint(NAME), host=host, quantization=setting)
        assert model.modules[0].method == "awq-marlin"


def test_integers_are_bit_equal(quantized_checkpoint: Checkpoint) -> None:
    folder = quantized_checkpoint(NAME)
    with safe_open(folder / "own.safetensors", "pt") as file:
        # a safetensors file is no dict
        stored = {key: file.get_tensor(key) for key in file.keys() if "layers.2." in key}  # noqa: SIM118
    sources = {key.rpartition(".")[0] for key in stored if key.endswith("qweight")}
    assert len(sources) == 7
    model = SequenceForward(folder, host=host_of(METHODS["awq-marlin"]))
    names = (module.name for module in model.modules)
    for linear in model.built.model.modules():
        if not isinstance(linear, Linear):
            continue
        sized = {next(names): width for _, width in linear.shape.parts}
        if not sources.issuperset(sized):
            continue
        tiles = linear.weights[0].tiles
        integers = unpack_tiles(tiles.weight, 4).split(list(sized.values()))
        zeros = untile_columns(tiles.zeros).split(list(sized.values()))
        for source, part, part_zeros in zip(sized, integers, zeros, strict=True):
            words = stored[f"{source}.qweight"]
            expected_integers = unpack_columns(words, GEMM_COLUMNS)
            assert np.array_equal(unpack_gemm(words).numpy(), expected_integers)
            assert np.array_equal(part.t().numpy(), expected_integers)
            expected_zeros = unpack_columns(stored[f"{source}.qzeros"], GEMM_COLUMNS)
            assert np.array_equal(part_zeros.t().numpy(), expected_zeros)
            sources.discard(source)
    assert not sources


@pytest.mark.parametrize(
    "config",
    [
        {"w_bit": 4, "q_group_size": 128, "version": "GEMM", "zero_point": True},
        {"quant_method": "awq", "bits": 4, "group_size": 128, "format": "gemm", "backend": "auto"},
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": 128,
            "checkpoint_format": "gemm",
            "format": "gemm",
            "desc_act": False,
            "sym": False,
            "lm_head": False,
            "pack_dtype": "int32",
            "dynamic": {"-:lm_head": {}, r"+:.*\.down_proj": {"bits": 4, "group_size": 128}},
            "meta": {"quantizer": ["gptqmodel:7.6.0"]},
        },
        {"quant_method": "awq"},
    ],
    ids=["AutoAWQ's own keys", "transformers 5", "GPTQModel", "defaults"],
)
def test_other_spellings(quantized_checkpoint: Checkpoint, tmp_path: Path, config: dict[str, object]) -> None:
    folder = respelled(quantized_checkpoint(NAME), tmp_path, config)
    assert error(SequenceForward(folder, host=host_of(METHODS["awq-marlin"]))) <= TOLERANCES[NAME]


def test_config_beside_config_json(quantized_checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = respelled(quantized_checkpoint(NAME), tmp_path, {})
    hf_config = json.loads((folder / "config.json").read_text())
    del hf_config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(hf_config))
    quant_config = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}
    (folder / "quant_config.json").write_text(json.dumps(quant_config))
    assert error(SequenceForward(folder, host=host_of(METHODS["awq"]))) <= TOLERANCES[NAME]


def test_modules_are_quantized_where_they_are_stored_so(
    quantized_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """AutoAWQ matches names within a layer, so that "layers.0" skips nothing; transformers matches whole names."""
    config: dict[str, object] = {"quant_method": "awq", "modules_to_not_convert": ["layers.0"]}
    folder = respelled(quantized_checkpoint(NAME), tmp_path, config)
    model = SequenceForward(folder, host=host_of(METHODS["awq-marlin"]))
    assert error(model) <= TOLERANCES[NAME]
    reasons = {module.name: module.reason for module in model.modules}
    assert (
        reasons["model.layers.0.self_attn.q_proj"]
        == "quantized in the checkpoint although modules_to_not_convert names 'layers.0'"
    )
    assert reasons["model.layers.1.self_attn.q_proj"] == ""


def test_a_config_of_other_groups_is_refused(quantized_checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = respelled(
        quantized_checkpoint(NAME), tmp_path, {"quant_method": "awq", "bits": 4, "group_size": 64}
    )
    message = (
        r"layers\.0\.self_attn\.q_proj: tensor 'scales' is float16 \[2, 256\], expected float16 \[4, 256\]"
    )
    with pytest.raises(QuantizationError, match=message):
        SequenceForward(folder, host=host_of(METHODS["awq-marlin"]))


def test_in_16_bits(quantized_checkpoint: Checkpoint) -> None:
    ids, logits = expected(NAME)
    for method in METHODS.values():
        model = SequenceForward(quantized_checkpoint(NAME), "bfloat16", host=host_of(method))
        found = model.logits(ids).float()
        assert found.dtype == torch.float32
        assert (found - logits).norm() <= 0.05 * logits.norm()
