"""Writes down the native calls of a model while it runs, and torch's calls between them as native ones."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType, MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from quire.api.errors import CaptureError
from quire_kernels.native.kernel import Kernel, Recording, SharedArguments
from quire_kernels.replay.torch_calls import HANDLERS

_aten = torch.ops.aten
_HOST_VALUES: Final[Mapping[object, str]] = MappingProxyType(
    {
        _aten.lift_fresh.default: "a tensor made of the host's values while the model runs",
        _aten.resolve_conj.default: "reading a tensor's values on the host (tolist, numpy)",
    }
)
"""What torch calls in passing, as views, where values go from the host to tensors or back, and what is going on."""
_PASSED_OVER = ("torch.", "quire_kernels.replay.", "quire_kernels.native.")
"""Modules whose functions a reason does not name: it names who called them."""


@dataclass(slots=True)
class Buffer:
    """Memory that the model asked for while it ran: room for the values of its tokens.

    Attributes:
        tensor: keeps it, so that no other one has its address.
        is_given: the model did not ask for it, it was given to it.
        first, last: numbers of the calls that use it, -1: none does.
    """

    tensor: Tensor
    address: int
    num_bytes: int
    is_given: bool = False
    first: int = -1
    last: int = -1


@dataclass(slots=True, frozen=True)
class Pointer:
    """A pointer in a call's arguments to a buffer: its offset in the structure, and where in the buffer it points."""

    field_offset: int
    buffer: int
    offset: int


@dataclass(slots=True, frozen=True)
class RecordedCall:
    """A kernel's call.

    Attributes:
        arguments: a copy of its structure.
        rows_offset: of `rows` in the structure, or None. rows_per_token: how many times the step's tokens they are.
        shared_offset: of the pointer to what the layers of a step share, or None.
    """

    kernel: Kernel
    arguments: ctypes.Structure
    rows_offset: int | None
    rows_per_token: int
    shared_offset: int | None
    pointers: tuple[Pointer, ...]


class Recorder(Recording):  # type: ignore[no-untyped-call]  # torch has no types for it
    """Writes down what a model does with a batch; everything that it cannot, it refuses.

    Seen are the calls of kernels, and of torch: views cost nothing, room for results becomes a buffer, a few
    operations have kernels here (see `torch_calls`), all others are refused.

    Args:
        num_tokens: T of the batch, at least 2: sizes of buffers and `rows` are multiples of it.
        shared: what `batch.attention` is.
        given: what the run begins with, if that is no result of an earlier call.

    Attributes:
        calls: in their order. buffers: what they work on.
    """

    def __init__(
        self, num_tokens: int, shared: SharedArguments | None = None, given: Tensor | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self.num_tokens = num_tokens
        self.calls: list[RecordedCall] = []
        self.buffers: list[Buffer] = []
        if given is not None:
            self.buffers.append(Buffer(given, given.data_ptr(), given.nbytes, is_given=True))
        self._shared = None if shared is None else ctypes.addressof(shared.arguments)

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """What torch asks a mode for each of its calls."""
        if func in _HOST_VALUES:
            self.refuse(_HOST_VALUES[func])
        handler = HANDLERS.get(func)
        if handler is not None:
            try:
                return handler(self, *args, **(kwargs or {}))
            except TypeError as error:
                raise CaptureError(f"torch's {func} cannot be recorded: {error} (in {_caller()})") from error
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.empty.memory_format:
            self.keep(result)
        elif func._schema.is_mutable or not _is_view(result, args):
            self.refuse(f"torch's {func}")
        return result

    def add(self, kernel: Kernel, arguments: ctypes.Structure) -> None:
        """See Recording."""
        number, kind = len(self.calls), type(arguments)
        copy = kind.from_buffer_copy(arguments)
        rows_offset = shared_offset = None
        rows_per_token = 0
        pointers: list[Pointer] = []
        for name, c_type, *_ in kind._fields_:
            field, value = getattr(kind, name), getattr(copy, name)
            if name == "rows":
                rows_per_token, rest = divmod(value, self.num_tokens)
                if rest or not rows_per_token:
                    self.refuse(f"{value} rows of {kernel.name} in a step of {self.num_tokens} tokens")
                rows_offset = field.offset
            elif c_type is ctypes.c_void_p and value is not None:
                if value == self._shared:
                    shared_offset = field.offset
                    continue
                found = self.find(value)
                if found is not None:
                    buffer = self.buffers[found]
                    buffer.first = number if buffer.first < 0 else buffer.first
                    buffer.last = number
                    offset = value - buffer.address
                    if offset * self.num_tokens >= buffer.num_bytes or (offset and buffer.is_given):
                        self.refuse(f"{kernel.name} of a part of the tokens")
                    pointers.append(Pointer(field.offset, found, offset))
        self.calls.append(
            RecordedCall(kernel, copy, rows_offset, rows_per_token, shared_offset, tuple(pointers))
        )

    def run(self, kernel: Kernel, arguments: ctypes.Structure) -> None:
        """Note a call, and make it; for handlers, outside of which `Kernel` does that."""
        self.add(kernel, arguments)
        kernel(arguments)

    def refuse(self, what: str) -> None:
        """See Recording; raises CaptureError."""
        raise CaptureError(f"{what} cannot be recorded (in {_caller()})")

    def keep(self, tensor: Tensor) -> Tensor:
        """Make a new tensor's memory a buffer; gives the tensor."""
        num_bytes = tensor.untyped_storage().nbytes()
        if num_bytes % self.num_tokens:
            self.refuse(f"room for {list(tensor.shape)} values in a step of {self.num_tokens} tokens")
        if num_bytes:
            self.buffers.append(Buffer(tensor, tensor.data_ptr(), num_bytes))
        return tensor

    def find(self, address: int) -> int | None:
        """The number of the buffer that an address lies in, if it lies in one."""
        for index in range(len(self.buffers) - 1, -1, -1):
            buffer = self.buffers[index]
            if buffer.address <= address < buffer.address + buffer.num_bytes:
                return index
        return None


def _caller() -> str:
    """The function that is being recorded: the innermost that is not of _PASSED_OVER."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if not f"{module}.".startswith(_PASSED_OVER):
            return f"{module}.{frame.f_code.co_qualname}"
        frame = frame.f_back
    return "unknown code"


def _is_view(result: object, args: Sequence[object]) -> bool:
    """Whether a call has given nothing but views of its tensors."""
    results = result if isinstance(result, list | tuple) else [result]
    storages = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
    return all(isinstance(each, Tensor) and each.untyped_storage().data_ptr() in storages for each in results)
