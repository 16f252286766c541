"""Every way in which a safetensors file can be broken is named, with what was expected and found."""

import json
from pathlib import Path

import pytest

from quire.api.errors import CheckpointError
from quire.loading.safetensors_header import TensorEntry, read_header


def write_file(path: Path, header: object, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_names_shapes_and_file_offsets(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry(offsets=(8, 16)),
        "a": entry(),
        "e": entry("F32", [0], (8, 8)),
    }
    path = write_file(tmp_path / "x.safetensors", header, bytes(16))
    start = path.stat().st_size - 16
    entries = read_header(path)
    assert entries["a"] == TensorEntry("a", "F32", (2,), start, start + 8)
    assert entries["b"] == TensorEntry("b", "F32", (2,), start + 8, start + 16)
    assert entries["e"].shape == (0,)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ([1], b"", "header is a list"),
        (b"{nope", b"", "not JSON"),
        (b"\xff\xfe", b"", "not JSON"),
        (b'{"a": {}, "a": {}}', b"", "names 'a' twice"),
        (b"[" * 100_000, b"", "not JSON"),
        ({"a": 3}, b"", "tensor 'a' is no object"),
        ({"a": entry("F31")}, bytes(8), "dtype 'F31'"),
        ({"a": entry(["F32"])}, bytes(8), "dtype"),
        ({"a": entry(shape=[-2])}, bytes(8), r"shape \[-2\]"),
        ({"a": entry(shape=[True])}, bytes(4), "shape"),
        ({"a": entry(shape="2")}, bytes(8), "shape '2'"),
        ({"a": entry(offsets=[8, 0])}, bytes(8), r"data_offsets \[8, 0\]"),
        ({"a": entry(offsets=[0])}, bytes(8), "data_offsets"),
        ({"a": entry(shape=[3])}, bytes(8), "needs 12 bytes; it has 8"),
        ({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12), "overlaps"),
        ({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20), "gap"),
        ({"a": entry()}, bytes(9), "tensors end at"),
    ],
)
def test_refuses_contradictions(tmp_path: Path, header: object, data: bytes, message: str) -> None:
    path = write_file(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as error:
        read_header(path)
    assert str(path) in str(error.value)


def test_names_expected_and_found_bytes_of_a_truncated_file(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.safetensors", {"a": entry()}, bytes(5))
    size = path.stat().st_size
    with pytest.raises(CheckpointError, match=f"truncated: expected at least {size + 3} bytes, found {size}"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes"),
        (b"1234567", "has 7 bytes"),
        ((100).to_bytes(8, "little") + b"{", "truncated: expected at least 108 bytes, found 9"),
        ((2**63).to_bytes(8, "little") + b"{}", "the limit is 100000000"),
    ],
)
def test_refuses_impossible_header_lengths(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_header(path)
