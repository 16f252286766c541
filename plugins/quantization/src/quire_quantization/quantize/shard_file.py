"""Writes a safetensors file piece by piece: its layout is known before its data.

Source: the safetensors format, https://github.com/huggingface/safetensors (README, "Format").
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from quire.api.errors import CapacityError, CheckpointError
from quire.api.quantization import StoredTensor

ITEM_BYTES: Mapping[str, int] = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes of an element, by the format's name of a dtype."""

_ALIGNMENT = 8


def stored_bytes(tensor: StoredTensor) -> int:
    """Bytes of a tensor in a file; CheckpointError where its dtype is unknown."""
    if tensor.dtype not in ITEM_BYTES:
        raise CheckpointError(f"dtype {tensor.dtype} cannot be written; known are {', '.join(ITEM_BYTES)}")
    return math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]


class ShardFile:
    """A file being written, under another name until it is complete.

    Use it as a context manager: on leaving without an error the file gets its name.
    """

    def __init__(self, path: Path, layout: Mapping[str, StoredTensor]) -> None:
        """Plan the file.

        Args:
            path: of the finished file.
            layout: its tensors; those of wide elements are put first, so that all are aligned.
        """
        self._path = path
        self._temporary = path.with_name(path.name + ".tmp")
        names = sorted(layout, key=lambda name: -ITEM_BYTES[layout[name].dtype])
        self._offsets: dict[str, int] = {}
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in names:
            start, end = end, end + stored_bytes(layout[name])
            header[name] = {
                "dtype": layout[name].dtype,
                "shape": list(layout[name].shape),
                "data_offsets": [start, end],
            }
            self._offsets[name] = start
        text = json.dumps(header, separators=(",", ":")).encode()
        self._header = text + b" " * (-len(text) % _ALIGNMENT)
        self._file: BinaryIO | None = None

    def __enter__(self) -> ShardFile:
        with full_disk_explained(self._path):
            self._file = self._temporary.open("wb")
            self._file.write(len(self._header).to_bytes(8, "little") + self._header)
        return self

    def write(self, name: str, tensor: Tensor, first_row: int = 0) -> None:
        """Write some rows of a tensor, from `first_row` on; they have the dtype of the layout."""
        if self._file is None:
            raise CheckpointError(f"{self._path} is not open for writing")
        row_bytes = tensor[0].nbytes if tensor.dim() and tensor.shape[0] else 0
        start = 8 + len(self._header) + self._offsets[name] + first_row * row_bytes
        with full_disk_explained(self._path):
            self._file.seek(start)
            self._file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        if error is not None:
            self._file.close()
            self._temporary.unlink(missing_ok=True)
            return
        with full_disk_explained(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(self._path)


@contextmanager
def full_disk_explained(path: Path) -> Iterator[None]:
    """Turn an error of writing into one that says what to do.

    Raises:
        CapacityError: the disk, or a quota, is full.
        CheckpointError: writing failed otherwise.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CapacityError(
                f"the disk is full while writing {path}: make room, then run the same command again to go on"
            ) from error
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error
