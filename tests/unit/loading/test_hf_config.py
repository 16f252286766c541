"""config.json: what is read of it, and what is refused."""

import json
from pathlib import Path

import pytest

from quire.api import hf_config as read
from quire.api.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from quire.loading.hf_config import architectures_of, checkpoint_dtype, read_hf_config


def test_reads_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["A"], "dtype": "bfloat16"}))
    config = read_hf_config(tmp_path)
    assert architectures_of(config) == ("A",)
    assert checkpoint_dtype(config) == "bfloat16"


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"[" * 100_000])
def test_refuses_malformed_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_hf_config(tmp_path)


def test_refuses_other_json_values(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_hf_config(tmp_path)


def test_refuses_what_is_no_model_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="has no config"):
        read_hf_config(tmp_path)
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        read_hf_config(tmp_path / "absent")


@pytest.mark.parametrize("architectures", [None, []])
def test_refuses_no_architecture(architectures: object) -> None:
    with pytest.raises(CheckpointError, match="architectures is missing or empty"):
        architectures_of({"architectures": architectures})


@pytest.mark.parametrize("architectures", ["A", [1], {}])
def test_refuses_odd_architectures(architectures: object) -> None:
    with pytest.raises(CheckpointError, match="architectures is .* list of strings"):
        architectures_of({"architectures": architectures})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "float16"}, "float16"),
        ({"torch_dtype": "torch.bfloat16"}, "bfloat16"),
        ({"dtype": "float32", "torch_dtype": "float16"}, "float32"),
        ({"dtype": None, "torch_dtype": "half"}, "float16"),
        ({}, None),
    ],
)
def test_reads_both_spellings_of_the_dtype(config: dict[str, object], expected: str | None) -> None:
    assert checkpoint_dtype(config) == expected


def test_refuses_an_unknown_dtype() -> None:
    with pytest.raises(CheckpointError, match="dtype 'int4'"):
        checkpoint_dtype({"dtype": "int4"})


@pytest.mark.parametrize("value", ["8", 8.5, True, [8]])
def test_integers_are_integers(value: object) -> None:
    with pytest.raises(CheckpointError, match="size is .* it must be an integer"):
        read.require_int({"size": value}, "size")


@pytest.mark.parametrize("value", [0, -4])
def test_integers_have_a_minimum(value: int) -> None:
    with pytest.raises(CheckpointError, match=f"size is {value}; it must be at least 1"):
        read.require_int({"size": value}, "size", minimum=1)


def test_missing_and_null_are_the_same() -> None:
    for config in ({}, {"x": None}):
        assert read.optional_int(config, "x") is None
        assert read.optional_float(config, "x") is None
        assert read.optional_strings(config, "x") is None
        assert read.optional_mapping(config, "x") is None
        assert read.optional_bool(config, "x", default=True) is True
        assert read.optional_str(config, "x", default="d") == "d"
        with pytest.raises(CheckpointError, match="x is missing"):
            read.require_int(config, "x")
        with pytest.raises(CheckpointError, match="x is missing"):
            read.require_float(config, "x")
        with pytest.raises(CheckpointError, match="x is missing"):
            read.require_floats(config, "x", length=2)


def test_numbers() -> None:
    assert read.require_float({"x": 10000}, "x") == 10000.0
    for value in (float("nan"), float("inf"), "1", False):
        with pytest.raises(CheckpointError, match="x is"):
            read.require_float({"x": value}, "x")
    with pytest.raises(CheckpointError, match="more than 0"):
        read.require_float({"x": 0.0}, "x", above=0.0)
    assert read.require_floats({"x": [1, 2.5]}, "x", length=2) == (1.0, 2.5)
    for values in ([1], "12", [1, "2"]):
        with pytest.raises(CheckpointError, match="x"):
            read.require_floats({"x": values}, "x", length=2)


def test_other_types() -> None:
    for reader in (read.optional_mapping, read.optional_strings):
        with pytest.raises(CheckpointError, match="x is 3"):
            reader({"x": 3}, "x")
    with pytest.raises(CheckpointError, match="true or false"):
        read.optional_bool({"x": 1}, "x", default=True)
    with pytest.raises(CheckpointError, match="a string"):
        read.optional_str({"x": 1}, "x", default="")
    with pytest.raises(UnsupportedModelError, match="'mish' is not served; served are relu, silu"):
        read.require_choice({"act": "mish"}, "act", {"silu": "a", "relu": "b"}, default="silu")


def test_heads() -> None:
    base = {"num_attention_heads": 4, "hidden_size": 32}
    assert read.require_heads(base) == read.HeadLayout(4, 4, 8)
    assert read.require_heads({**base, "num_key_value_heads": None, "head_dim": None}) == read.HeadLayout(
        4, 4, 8
    )
    assert read.require_heads({**base, "num_key_value_heads": 2, "head_dim": 6}) == read.HeadLayout(4, 2, 6)
    with pytest.raises(
        CheckpointError, match="num_attention_heads 4 is no multiple of num_key_value_heads 3"
    ):
        read.require_heads({**base, "num_key_value_heads": 3})
    with pytest.raises(CheckpointError, match="hidden_size 30 is no multiple"):
        read.require_heads({**base, "hidden_size": 30})
