"""A step's small arrays in one piece of memory, so that one copy takes all of them to the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays = Mapping[str, NDArray[Any]]
Shape = tuple[int, ...]

_ALIGNMENT = 64


class Transfers(Protocol):
    """Copies between the host and a device, run in order behind what was launched before; the host goes on."""

    def host_memory(self, num_bytes: int) -> Tensor:
        """Zeros, uint8, that copies may read while the host goes on."""
        ...

    def device_memory(self, num_bytes: int) -> Tensor:
        """Zeros, uint8, on the device."""
        ...

    def to_device(self, target: Tensor, source: Tensor) -> None:
        """Launch a copy; the source must not change until a later mark is reached."""
        ...

    def to_host(self, source: Tensor) -> Tensor:
        """Launch a copy into new memory of the host, which is whole when a later mark is reached."""
        ...

    def mark(self) -> object:
        """What is reached as soon as everything launched so far is done."""
        ...

    def wait(self, mark: object) -> None:
        """Wait until a mark is reached."""
        ...


class CudaTransfers:
    """Copies to and from pinned memory, on the current stream of a CUDA or ROCm device; see Transfers."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def host_memory(self, num_bytes: int) -> Tensor:
        """See Transfers."""
        return torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=True)

    def device_memory(self, num_bytes: int) -> Tensor:
        """See Transfers."""
        return torch.zeros(num_bytes, dtype=torch.uint8, device=self._device)

    def to_device(self, target: Tensor, source: Tensor) -> None:
        """See Transfers."""
        target.copy_(source, non_blocking=True)

    def to_host(self, source: Tensor) -> Tensor:
        """See Transfers."""
        target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        return target.copy_(source, non_blocking=True)

    def mark(self) -> torch.cuda.Event:
        """See Transfers."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types for it
        event.record(torch.cuda.current_stream(self._device))
        return event

    def wait(self, mark: object) -> None:
        """See Transfers."""
        assert isinstance(mark, torch.cuda.Event)
        mark.synchronize()


def transfers_of(device: torch.device) -> Transfers | None:
    """How a device's memory is reached; None: it is the host's."""
    return CudaTransfers(device) if device.type == "cuda" else None


@dataclass(slots=True)
class _Half:
    """Memory of the host, its arrays, and the end of the last copy that read it."""

    memory: Tensor
    arrays: Arrays
    copied: object | None = None


class StepBuffer:
    """Arrays that are filled for each step, at fixed places, and the same on the device.

    On a device with memory of its own there are two halves on the host, used in turn: the copy of one step may
    still read the first while the next step is written into the second. The device's tensors are always the same:
    a copy is launched behind the kernels of the step before. On a CPU all of it is the same memory.

    Args:
        fields: shape and dtype of each array, by name. Of the last one a step may copy only its first rows.
        transfers: to the device's memory; None: it is the host's.
    """

    def __init__(self, fields: Mapping[str, tuple[Shape, torch.dtype]], transfers: Transfers | None) -> None:
        self._fields = fields
        self._transfers = transfers
        self._offsets: dict[str, int] = {}
        size = end = 0
        for name, (shape, dtype) in fields.items():
            size = -(-end // _ALIGNMENT) * _ALIGNMENT
            self._offsets[name] = size
            end = size + torch.Size(shape).numel() * dtype.itemsize
        last_shape, last_dtype = list(fields.values())[-1]
        self._last_row_bytes = torch.Size(last_shape[1:]).numel() * last_dtype.itemsize
        self._last_offset = size
        hosts = [torch.zeros(end, dtype=torch.uint8)]
        self._device = hosts[0]
        if transfers is not None:
            hosts = [transfers.host_memory(end) for _ in range(2)]
            self._device = transfers.device_memory(end)
        self._halves = [_Half(host, self._arrays(host)) for host in hosts]
        self.tensors = self._views(self._device)

    def begin(self) -> Arrays:
        """The arrays to fill for the next step, with whatever an earlier step left in them."""
        self._halves.append(self._halves.pop(0))
        half = self._halves[0]
        if self._transfers is not None and half.copied is not None:
            self._transfers.wait(half.copied)
        return half.arrays

    def send(self, num_last_rows: int) -> None:
        """Launch the copy of what `begin` gave to the device: all of it, and so many rows of the last array."""
        if self._transfers is None:
            return
        half = self._halves[0]
        end = self._last_offset + num_last_rows * self._last_row_bytes
        self._transfers.to_device(self._device[:end], half.memory[:end])
        half.copied = self._transfers.mark()

    def _views(self, memory: Tensor) -> dict[str, Tensor]:
        views = {}
        for name, (shape, dtype) in self._fields.items():
            first = self._offsets[name]
            num_bytes = torch.Size(shape).numel() * dtype.itemsize
            views[name] = memory[first : first + num_bytes].view(dtype).view(shape)
        return views

    def _arrays(self, memory: Tensor) -> Arrays:
        return {name: view.numpy() for name, view in self._views(memory).items()}
