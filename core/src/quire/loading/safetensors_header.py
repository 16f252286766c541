"""Validates a safetensors file before a byte of it is mapped. Imports no torch.

Source: the safetensors format, https://github.com/huggingface/safetensors (README, "Format").
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from quire.api.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8


@dataclass(slots=True, frozen=True)
class TensorEntry:
    """One tensor of a file.

    Attributes:
        dtype: the format's name of it ("BF16", "F32", "I32", ...).
        start, end: byte offsets in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file, by name.

    Raises:
        CheckpointError: the file is truncated, or its header is too long, not JSON, or contradicts
            itself or the file's size.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length_bytes = file.read(_LENGTH_BYTES)
        if len(length_bytes) < _LENGTH_BYTES:
            raise _broken(path, f"it has {size} bytes, fewer than the {_LENGTH_BYTES} of the header's length")
        length = int.from_bytes(length_bytes, "little")
        if length > MAX_HEADER_BYTES:
            raise _broken(path, f"its header claims {length} bytes; the limit is {MAX_HEADER_BYTES}")
        if _LENGTH_BYTES + length > size:
            raise _truncated(path, _LENGTH_BYTES + length, size)
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=lambda pairs: _unique(path, pairs))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise _broken(path, f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _broken(path, f"its header is a {type(header).__name__}; it must be an object")
    header.pop("__metadata__", None)
    first = _LENGTH_BYTES + length
    entries = [_parse_entry(path, name, value, first) for name, value in header.items()]
    _check_ranges(path, entries, first, size)
    return {entry.name: entry for entry in entries}


def _unique(path: Path, pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _broken(path, f"its header names {twice!r} twice")
    return result


def _parse_entry(path: Path, name: str, value: object, first: int) -> TensorEntry:
    if not isinstance(value, dict):
        raise _broken(path, f"the header's entry of tensor {name!r} is no object")
    dtype, shape, offsets = value.get("dtype"), _sizes(value.get("shape")), _sizes(value.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in element_bytes():
        known = ", ".join(element_bytes())
        raise _broken(path, f"tensor {name!r} has dtype {dtype!r}; known are {known}")
    if shape is None:
        found = value.get("shape")
        raise _broken(path, f"tensor {name!r} has shape {found!r}; it must be a list of integers from 0")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        found = value.get("data_offsets")
        raise _broken(path, f"tensor {name!r} has data_offsets {found!r}; they must be [start, end]")
    expected = math.prod(shape) * element_bytes()[dtype]
    if offsets[1] - offsets[0] != expected:
        found = offsets[1] - offsets[0]
        raise _broken(
            path, f"tensor {name!r} of shape {shape} in {dtype} needs {expected} bytes; it has {found}"
        )
    return TensorEntry(name, dtype, tuple(shape), first + offsets[0], first + offsets[1])


def _sizes(value: object) -> list[int] | None:
    """The list of integers from 0 that `value` is, or None."""
    if not isinstance(value, list):
        return None
    is_valid = all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value)
    return value if is_valid else None


def _check_ranges(path: Path, entries: list[TensorEntry], first: int, size: int) -> None:
    """The tensors must fill the file from the header to its end, without gaps and overlaps."""
    position = first
    for entry in sorted(entries, key=lambda item: (item.start, item.end)):
        if entry.start != position:
            kind = "overlaps the tensor before it" if entry.start < position else "leaves a gap before it"
            raise _broken(
                path, f"tensor {entry.name!r} starts at byte {entry.start}, not {position}: it {kind}"
            )
        position = entry.end
    if position > size:
        raise _truncated(path, position, size)
    if position < size:
        raise _broken(path, f"it has {size} bytes; its tensors end at {position}")


def element_bytes() -> dict[str, int]:
    """Bytes per element of the format's dtypes that can be read."""
    return {
        "F64": 8,
        "F32": 4,
        "F16": 2,
        "BF16": 2,
        "F8_E4M3": 1,
        "F8_E5M2": 1,
        "I64": 8,
        "I32": 4,
        "I16": 2,
        "I8": 1,
        "U8": 1,
        "BOOL": 1,
    }


def _broken(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a valid safetensors file: {reason}; fetch the file again")


def _truncated(path: Path, expected: int, found: int) -> CheckpointError:
    return CheckpointError(
        f"{path} is truncated: expected at least {expected} bytes, found {found}; fetch the file again"
    )
