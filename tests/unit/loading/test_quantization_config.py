"""Where tools write how they quantized a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quire.api.errors import QuantizationError
from quire.loading.quantization_config import read_quantization_config


@pytest.mark.parametrize(
    ("hf_config", "files", "label"),
    [
        ({}, {}, None),
        ({"quantization_config": None}, {}, None),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, {}, "gptq"),
        ({"compression_config": {"config_groups": {}}}, {}, "compressed-tensors"),
        ({"quantization_config": {"bits": 4, "desc_act": False}}, {}, "gptq"),
        ({"quantization_config": {"bits": 4, "zero_point": True}}, {}, "awq"),
        ({}, {"quantize_config.json": {"bits": 4, "group_size": 128}}, "gptq"),
        ({}, {"quantize_config.json": {"quant_method": "awq"}}, "awq"),
        ({}, {"quant_config.json": {"w_bit": 4, "q_group_size": 64}}, "awq"),
        ({}, {"quant_config.json": {"q_group_size": 64}}, "awq"),
        ({}, {"quant_config.json": {"wbits": 4}}, "squeezellm"),
        ({"quantization_config": {"wbits": 4}}, {}, "squeezellm"),
        ({}, {"quantize_config.json": {"zero_point": True, "w_bit": 4}}, "awq"),
        ({}, {"quant_config.json": {"bits": 4, "desc_act": True}}, "gptq"),
        (
            {"quantization_config": {"quant_method": "awq"}},
            {"quantize_config.json": {"quant_method": "gptq"}},
            "awq",
        ),
    ],
)
def test_labels(
    tmp_path: Path, hf_config: dict[str, object], files: dict[str, object], label: str | None
) -> None:
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    config = read_quantization_config(tmp_path, hf_config)
    assert (None if config is None else config["quant_method"]) == label


@pytest.mark.parametrize(
    ("hf_config", "file", "words"),
    [
        ({"quantization_config": "awq"}, None, "quantization_config is a str; it must be a JSON object"),
        ({"quantization_config": {"bits": 4}}, None, "quant_method=None; name the method"),
        ({"quantization_config": {"quant_method": 7}}, None, "quant_method=7; name the method"),
        ({}, "{", "quantize_config.json is not valid JSON"),
        ({}, "[]", "quantize_config.json is a list"),
    ],
)
def test_what_is_malformed(
    tmp_path: Path, hf_config: dict[str, object], file: str | None, words: str
) -> None:
    if file is not None:
        (tmp_path / "quantize_config.json").write_text(file)
    with pytest.raises(QuantizationError, match=words):
        read_quantization_config(tmp_path, hf_config)
