"""Reading tensors from one file or from shards, and refusing folders that do not hold together."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quire.api.errors import CheckpointError, ModelNotFoundError
from quire.loading.checkpoint import open_checkpoint


def write_shards(folder: Path, shards: dict[str, dict[str, torch.Tensor]], **extra: str) -> None:
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    write_index(folder, {**weight_map, **extra})


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int8,
        torch.bool,
        torch.float8_e4m3fn,
    ],
)
def test_reads_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    expected = torch.arange(6).reshape(2, 3).to(dtype)
    save_file(
        {"a": expected, "scalar": torch.tensor(3.0), "empty": torch.empty(0, 4)},
        tmp_path / "model.safetensors",
    )
    checkpoint = open_checkpoint(tmp_path)
    assert sorted(checkpoint.names()) == ["a", "empty", "scalar"]
    assert checkpoint.shape("a") == (2, 3)
    assert checkpoint.dtype("a") == dtype
    assert torch.equal(checkpoint.get("a").to(torch.float64), expected.to(torch.float64))
    assert checkpoint.get("scalar") == 3.0
    assert checkpoint.get("empty").shape == (0, 4)


def test_reads_unaligned_data(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    header += b" " * (1 - len(header) % 2)
    data = torch.tensor([1.5, -2.0]).numpy().tobytes()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert len(header) % 2 == 1
    assert open_checkpoint(tmp_path).get("a").tolist() == [1.5, -2.0]


def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    open_checkpoint(tmp_path).get("a").zero_()
    assert open_checkpoint(tmp_path).get("a").tolist() == [1, 1, 1]


def test_tensors_outlive_the_checkpoint(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    tensor = open_checkpoint(tmp_path).get("a")
    (tmp_path / "model.safetensors").unlink()
    assert tensor.tolist() == [1, 1, 1]


def test_reads_shards(tmp_path: Path) -> None:
    write_shards(
        tmp_path,
        {
            "m-1.safetensors": {"a": torch.ones(2), "b": torch.zeros(1)},
            "m-2.safetensors": {"c": torch.full((3,), 2.0)},
        },
    )
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.names() == ["a", "b", "c"]
    assert checkpoint.get("c").tolist() == [2, 2, 2]
    assert checkpoint.file_of("c").name == "m-2.safetensors"
    assert "c" in checkpoint
    assert "d" not in checkpoint


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="no tensor 'b' among 1"):
        open_checkpoint(tmp_path).get("b")


def test_refuses_a_missing_shard(tmp_path: Path) -> None:
    write_shards(tmp_path, {"m-1.safetensors": {"a": torch.ones(2)}}, b="m-2.safetensors")
    with pytest.raises(CheckpointError, match=r"shard m-2\.safetensors is missing"):
        open_checkpoint(tmp_path)


def test_refuses_a_truncated_shard(tmp_path: Path) -> None:
    write_shards(tmp_path, {"m-1.safetensors": {"a": torch.ones(2)}, "m-2.safetensors": {"b": torch.ones(2)}})
    shard = tmp_path / "m-2.safetensors"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(
        CheckpointError, match=r"m-2\.safetensors is truncated: expected at least \d+ bytes, found \d+"
    ):
        open_checkpoint(tmp_path)


def test_refuses_a_tensor_that_its_shard_lacks(tmp_path: Path) -> None:
    write_shards(tmp_path, {"m-1.safetensors": {"a": torch.ones(2)}}, b="m-1.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor 'b' should be in m-1\.safetensors"):
        open_checkpoint(tmp_path)


def test_refuses_a_tensor_that_the_index_lacks(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "stray": torch.ones(1)}, tmp_path / "m-1.safetensors")
    write_index(tmp_path, {"a": "m-1.safetensors"})
    with pytest.raises(CheckpointError, match="holds tensor 'stray'"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../m.safetensors", "/etc/m.safetensors", "sub/m.safetensors", "..", "a\\m.safetensors", "m.bin", ""],
)
def test_refuses_shards_outside_the_folder(tmp_path: Path, name: str) -> None:
    write_index(tmp_path, {"a": name})
    with pytest.raises(CheckpointError, match="not the plain name"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": {"a": 1}}', "tensor 'a' is mapped to 1"),
    ],
)
def test_refuses_a_malformed_index(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_refuses_pickles_with_the_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match="save_pretrained"):
        open_checkpoint(tmp_path)


def test_refuses_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        open_checkpoint(tmp_path)
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        open_checkpoint(tmp_path / "absent")


def test_the_only_file_of_another_name_is_taken(tmp_path: Path) -> None:
    """As AutoGPTQ wrote them."""
    save_file({"a": torch.ones(2)}, tmp_path / "gptq_model-4bit-128g.safetensors")
    assert open_checkpoint(tmp_path).names() == ["a"]
    save_file({"b": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="but gptq_model-4bit-128g.safetensors, other.safetensors"):
        open_checkpoint(tmp_path)
