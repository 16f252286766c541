"""A recorded run: its calls with room for any number of tokens, and how to run them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from quire.api.errors import CaptureError
from quire_kernels.native.kernel import raise_failure
from quire_kernels.native.library import native_library
from quire_kernels.replay.fusion import fuse
from quire_kernels.replay.recorder import Buffer, RecordedCall, Recorder

_LINE = 64
_SHARED_BYTES = 256
"""Room for what the layers of a step share."""


class _Call(ctypes.Structure):
    """`Call` of native.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("run", "arguments", "rows")),
        ("rows_per_token", ctypes.c_int64),
    ]


class _Place(ctypes.Structure):
    """`Place` of native.c."""

    _fields_ = [
        ("pointer", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("offset_per_token", "offset")),
    ]


class Program:
    """Recorded calls that compute a result, for any number of tokens.

    Buffers that are not needed at the same time share memory. Where they lie is the number of tokens times an offset
    that is planned once: few tokens lie close together, and for one number of tokens all addresses are the same in
    every run.

    Args:
        recorder: has seen the run. result: what the run gave, [T, ...], one of its buffers.
        marks: numbers of the calls with which layers begin.
        max_tokens: the most that a run is for.

    Attributes:
        num_calls: how many there are. bytes_per_token: of the buffers together.

    Raises:
        CaptureError: the result is something else.
    """

    def __init__(self, recorder: Recorder, result: Tensor, marks: Sequence[int], max_tokens: int) -> None:
        library = native_library()
        self._run, self._set = library.quire_replay_run, library.quire_replay_place
        self._run.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
        at, count = ctypes.c_void_p, ctypes.c_int64
        self._set.argtypes = [at, count, at, count, at, count]
        self._set.restype = None
        found = _result_of(recorder, result)
        fused = fuse(recorder.calls, recorder.buffers, marks, found)
        fused.buffers[found].last = len(fused.calls)
        offsets, self.bytes_per_token = plan_offsets(fused.buffers, recorder.num_tokens)
        self.num_calls, self.max_tokens = len(fused.calls), max_tokens
        self._result = (offsets[found], result.shape[1:], result.dtype)
        self.trim()
        ends = [*sorted({mark for mark in fused.marks if 0 < mark < self.num_calls}), self.num_calls]
        self._parts = list(zip([0, *ends[:-1]], ends, strict=True))
        self._lay_out(fused.calls, fused.buffers, offsets)

    def run(
        self,
        num_tokens: int,
        shared: ctypes.Structure | None = None,
        given: Tensor | None = None,
        after_layer: Callable[[], None] | None = None,
    ) -> Tensor:
        """Run the calls.

        Args:
            num_tokens: T, from 1 to `max_tokens`.
            shared: what the layers of the step share.
            given: what the run begins with, where one was given when it was recorded.
            after_layer: called after each layer; None: all layers run without a pause.

        Returns:
            The result, [T, ...], valid until the next run.

        Raises:
            MemoryError: there is none for the kernels' copies.
        """
        if shared is not None and self._shared is not None:
            assert ctypes.sizeof(shared) <= _SHARED_BYTES
            ctypes.memmove(self._shared, ctypes.addressof(shared), ctypes.sizeof(shared))
        if given is not None:
            for pointer in self._given:
                pointer.value = given.data_ptr()
        if num_tokens != self._num_tokens or not num_tokens:
            self._place(num_tokens)
        threads = torch.get_num_threads()
        for first, last in [(0, self.num_calls)] if after_layer is None else self._parts:
            status = self._run(self._calls_at + first * ctypes.sizeof(_Call), last - first, threads)
            raise_failure(status, f"a replayed step of {num_tokens} tokens")
            if after_layer is not None:
                after_layer()
        return self._view

    def trim(self) -> None:
        """Give memory back; what the last run gave stays valid, and the next one has other addresses."""
        self._arena = self._view = torch.empty(0)
        num_bytes = self.bytes_per_token * self.max_tokens + _LINE
        try:
            self._arena = torch.empty(num_bytes, dtype=torch.uint8)
        except RuntimeError as error:
            raise CaptureError(f"{num_bytes / 1e9:.1f} GB for recorded steps are not to be had") from error
        self._base = -(-self._arena.data_ptr() // _LINE) * _LINE
        self._num_tokens = 0
        self._view = torch.empty(0)

    def addresses(self) -> bytes:
        """The calls' arguments as they are now, pointers included: the same after every run of one size."""
        return bytes(self._arguments)

    def _lay_out(
        self, calls: Sequence[RecordedCall], buffers: Sequence[Buffer], offsets: Sequence[int]
    ) -> None:
        """Copy the arguments beside each other, and list what changes in them."""
        sizes = [-(-ctypes.sizeof(call.arguments) // 8) * 8 for call in calls]
        shared_size = _SHARED_BYTES if any(call.shared_offset is not None for call in calls) else 0
        self._arguments = ctypes.create_string_buffer(sum(sizes))
        self._shared_memory = ctypes.create_string_buffer(shared_size)
        self._shared = ctypes.addressof(self._shared_memory) if shared_size else None
        self._calls = (_Call * len(calls))()
        self._calls_at = ctypes.addressof(self._calls)
        self._given: list[ctypes.c_void_p] = []
        places: list[_Place] = []
        at = ctypes.addressof(self._arguments)
        for call, entry, size in zip(calls, self._calls, sizes, strict=True):
            ctypes.memmove(at, ctypes.addressof(call.arguments), ctypes.sizeof(call.arguments))
            rows = None if call.rows_offset is None else at + call.rows_offset
            entry.run, entry.arguments, entry.rows = call.kernel.team, at, rows
            entry.rows_per_token = call.rows_per_token
            if call.shared_offset is not None:
                ctypes.c_void_p.from_address(at + call.shared_offset).value = self._shared
            for pointer in call.pointers:
                if buffers[pointer.buffer].is_given:
                    self._given.append(ctypes.c_void_p.from_address(at + pointer.field_offset))
                    continue
                places.append(_Place(at + pointer.field_offset, offsets[pointer.buffer], pointer.offset))
            at += size
        self._places = (_Place * len(places))(*places)

    def _place(self, num_tokens: int) -> None:
        if not 0 < num_tokens <= self.max_tokens:
            raise ValueError(f"{num_tokens} tokens: this program is for 1 to {self.max_tokens}")
        counts = (self.num_calls, ctypes.addressof(self._places), len(self._places))
        self._num_tokens = 0  # an interrupt from here on leaves nothing that counts as placed
        self._set(self._calls_at, *counts, self._base, num_tokens)
        offset, shape, dtype = self._result
        first = self._base - self._arena.data_ptr() + offset * num_tokens
        num_bytes = num_tokens * shape.numel() * dtype.itemsize
        self._view = self._arena[first : first + num_bytes].view(dtype).view(num_tokens, *shape)
        self._num_tokens = num_tokens


def _result_of(recorder: Recorder, result: Tensor) -> int:
    """The buffer that a run has given, whole."""
    found = recorder.find(result.data_ptr())
    buffer = None if found is None else recorder.buffers[found]
    if found is None or buffer is None or buffer.is_given or buffer.first < 0:
        raise CaptureError("what the model gave is not the result of recorded calls")
    is_whole = result.is_contiguous() and result.data_ptr() == buffer.address
    if not is_whole or result.shape[:1] != (recorder.num_tokens,):
        raise CaptureError(f"what the model gave, {list(result.shape)}, is not one row a token")
    return found


def plan_offsets(buffers: Sequence[Buffer], num_tokens: int) -> tuple[list[int], int]:
    """Where buffers lie, in bytes a token, so that none shares memory with one that is needed at the same time.

    Args:
        buffers: with the calls that use them; those that none uses get no room.
        num_tokens: that they were made for.

    Returns:
        offsets, multiples of 64, in the buffers' order; the end of the last one.
    """
    sizes = [-(-buffer.num_bytes // num_tokens // _LINE) * _LINE for buffer in buffers]
    offsets = [0] * len(buffers)
    placed: list[int] = []
    for index in sorted(range(len(buffers)), key=lambda index: buffers[index].first):
        buffer, size = buffers[index], sizes[index]
        if buffer.first < 0 or buffer.is_given:
            continue
        alive = [other for other in placed if buffers[other].last >= buffer.first]
        offset = 0
        for other in sorted(alive, key=lambda other: offsets[other]):
            if offset + size <= offsets[other]:
                break
            offset = max(offset, offsets[other] + sizes[other])
        offsets[index] = offset
        placed = [*alive, index]
    return offsets, max((offsets[index] + sizes[index] for index in range(len(buffers))), default=0)
