"""Reads the tensors of a safetensors folder, one file or sharded, lazily and memory-mapped."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from quire.api.errors import CheckpointError, ModelNotFoundError
from quire.loading.safetensors_header import TensorEntry, read_header

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_REFUSED_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt"})


class Checkpoint:
    """The tensors of a checkpoint, by name.

    Every header is validated when the checkpoint is opened; data is mapped from disk when asked for.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, tuple[Path, TensorEntry]]) -> None:
        """See `open_checkpoint`."""
        self.folder = folder
        self._tensors = dict(tensors)
        self._maps: dict[Path, mmap.mmap] = {}

    def names(self) -> list[str]:
        """All tensors' names, in the order of their files and their place in them."""
        return list(self._tensors)

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._tensors

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor; raises CheckpointError when there is none."""
        return self._find(name)[0]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it; raises CheckpointError when there is none."""
        return self._find(name)[1].shape

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's stored dtype, without reading it; raises CheckpointError when there is none."""
        return _torch_dtypes()[self._find(name)[1].dtype]

    def element_bytes(self, name: str) -> int:
        """Stored bytes per element of a tensor; raises CheckpointError when there is none."""
        return self.dtype(name).itemsize

    def get(self, name: str) -> Tensor:
        """A tensor in its stored dtype, on the CPU: a private mapping of the file, so writes stay in memory.

        Raises:
            CheckpointError: there is no tensor of that name.
        """
        path, entry = self._find(name)
        dtype = self.dtype(name)
        if entry.end == entry.start:
            return torch.empty(entry.shape, dtype=dtype)
        if path not in self._maps:
            with path.open("rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        flat = torch.frombuffer(
            self._maps[path], dtype=torch.uint8, count=entry.end - entry.start, offset=entry.start
        )
        if entry.start % dtype.itemsize:
            flat = flat.clone()  # a header of odd length leaves the data unaligned
        return flat.view(dtype).view(entry.shape)

    def _find(self, name: str) -> tuple[Path, TensorEntry]:
        if name not in self._tensors:
            raise CheckpointError(f"{self.folder}: there is no tensor {name!r} among {len(self._tensors)}")
        return self._tensors[name]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open the safetensors checkpoint in a model folder and validate its headers.

    It is model.safetensors, shards with an index, or the only file of another name (as older tools wrote).

    Raises:
        ModelNotFoundError: there is no such folder.
        CheckpointError: there is no checkpoint, only pickled ones, or a file is broken or missing.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"{folder}: there is no such folder")
    if (folder / INDEX_NAME).is_file():
        return _open_sharded(folder)
    others = sorted(folder.glob("*.safetensors"))
    if (folder / SINGLE_NAME).is_file() or len(others) == 1:
        path = folder / SINGLE_NAME if (folder / SINGLE_NAME).is_file() else others[0]
        return Checkpoint(folder, {name: (path, entry) for name, entry in _in_order(path).items()})
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _REFUSED_SUFFIXES)
    if pickled:
        raise CheckpointError(
            f"{folder} has pickled weights only ({', '.join(pickled[:3])}); loading them could run any code. "
            "Convert them: transformers' AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )
    found = f", but {', '.join(path.name for path in others[:3])}" if others else ""
    raise CheckpointError(f"{folder} has no {SINGLE_NAME} and no {INDEX_NAME}{found}; fetch the model again")


def _open_sharded(folder: Path) -> Checkpoint:
    weight_map = _read_index(folder / INDEX_NAME)
    shards = {name: _shard_path(folder, name) for name in dict.fromkeys(weight_map.values())}
    entries = {name: _in_order(path) for name, path in shards.items()}
    tensors: dict[str, tuple[Path, TensorEntry]] = {}
    for shard, path in shards.items():
        for tensor, entry in entries[shard].items():
            if weight_map.get(tensor) == shard:
                tensors[tensor] = (path, entry)
            elif tensor not in weight_map:
                raise CheckpointError(f"{path} holds tensor {tensor!r}, which {INDEX_NAME} does not name")
    for tensor, shard in weight_map.items():
        if tensor not in tensors:
            raise CheckpointError(
                f"{folder / INDEX_NAME}: tensor {tensor!r} should be in {shard}, which does not have it"
            )
    return Checkpoint(folder, tensors)


def _in_order(path: Path) -> dict[str, TensorEntry]:
    entries = read_header(path)
    return dict(sorted(entries.items(), key=lambda item: item[1].start))


def _read_index(path: Path) -> dict[str, str]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}; fetch the file again") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map from tensors to files; fetch the file again")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"{path}: tensor {tensor!r} is mapped to {shard!r}, not to a file name")
    return weight_map


def _shard_path(folder: Path, name: str) -> Path:
    if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
        raise CheckpointError(
            f"{folder / INDEX_NAME}: {name!r} is not the plain name of a .safetensors file in the folder"
        )
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{folder / INDEX_NAME}: shard {name} is missing; fetch it")
    return path


def _torch_dtypes() -> dict[str, torch.dtype]:
    return {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
