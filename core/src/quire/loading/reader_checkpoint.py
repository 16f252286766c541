"""A plugin's CheckpointReader in the place of core's safetensors checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from quire.api.errors import CheckpointError, QuireError
from quire.api.extensions import CheckpointReader

T = TypeVar("T")


class ReaderCheckpoint:
    """What `load_weights` asks of a checkpoint, answered by a reader; see `quire.loading.checkpoint.Checkpoint`.

    A tensor's dtype is known only by reading it, so each is read twice.
    """

    def __init__(self, folder: Path, reader: CheckpointReader) -> None:
        self.folder = folder
        self._reader = reader
        self._dtypes: dict[str, torch.dtype] = {}
        self._names = dict.fromkeys(str(name) for name in self._ask("names", reader.names))

    def names(self) -> list[str]:
        """All tensors' names."""
        return list(self._names)

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._names

    def file_of(self, name: str) -> Path:
        """The model's folder: which file it is, only the reader knows."""
        return self.folder

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return tuple(self._ask(f"shape({name!r})", lambda: self._reader.shape(name)))

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's dtype."""
        if name not in self._dtypes:
            self._dtypes[name] = self.get(name).dtype
        return self._dtypes[name]

    def element_bytes(self, name: str) -> int:
        """Bytes per element of a tensor."""
        return self.dtype(name).itemsize

    def get(self, name: str) -> Tensor:
        """A tensor on the CPU; CheckpointError where the reader gives something else or another shape."""
        value = self._ask(f"read({name!r})", lambda: self._reader.read(name))
        if not isinstance(value, Tensor) or value.device.type != "cpu":
            raise CheckpointError(
                f"{self.folder}: {self._who}.read({name!r}) gave {type(value).__name__}, not a CPU tensor"
            )
        if tuple(value.shape) != self.shape(name):
            raise CheckpointError(
                f"{self.folder}: {self._who}.read({name!r}) gave the shape {list(value.shape)}, "
                f"shape({name!r}) says {list(self.shape(name))}"
            )
        return value

    @property
    def _who(self) -> str:
        return f"{type(self._reader).__module__}.{type(self._reader).__qualname__}"

    def _ask(self, what: str, function: Callable[[], T]) -> T:
        try:
            return function()
        except QuireError:
            raise
        except (Exception, SystemExit) as error:
            raise CheckpointError(
                f"{self.folder}: {self._who}.{what} failed: {type(error).__name__}: {error}"
            ) from error
