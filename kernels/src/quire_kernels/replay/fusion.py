"""Recorded calls that become one: what follows a linear layer is done while its sums are in registers.

Nothing is rounded otherwise than by the calls alone, so results stay the same bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quire_kernels.linear.native import Arguments as Linear
from quire_kernels.replay.recorder import Buffer, Pointer, RecordedCall
from quire_kernels.replay.torch_calls import ADD

_PANELS = 64
"""Outputs of a gated layer are a multiple of it: gates and values are whole panels."""


@dataclass(slots=True, frozen=True)
class Fused:
    """Calls after fusion.

    Attributes:
        calls: in their order. buffers: as they were, with the calls that use them now.
        marks: the numbers of the calls that the given ones are now, or are part of.
    """

    calls: list[RecordedCall]
    buffers: list[Buffer]
    marks: list[int]


def fuse(
    calls: Sequence[RecordedCall], buffers: Sequence[Buffer], marks: Sequence[int], result: int
) -> Fused:
    """Let linear layers do the activation or the sum that is made of their outputs and of nothing else.

    Args:
        calls: recorded.
        buffers: of the calls.
        marks: numbers of calls.
        result: the buffer that stays what it is.
    """
    kept: list[RecordedCall] = []
    numbers: list[int] = []
    for number, call in enumerate(calls):
        one = None
        if kept and number not in marks:
            one = _gated(kept[-1], call) or _summed(kept[-1], call)
            if one is not None and not _is_private(kept[-1], buffers, result, number):
                one = None
        if one is None:
            kept.append(call)
        else:
            kept[-1] = one
        numbers.append(len(kept) - 1)
    used = [replace(buffer, first=-1, last=-1) for buffer in buffers]
    for number, call in enumerate(kept):
        for pointer in call.pointers:
            buffer = used[pointer.buffer]
            buffer.first = number if buffer.first < 0 else buffer.first
            buffer.last = number
    return Fused(kept, used, [numbers[mark] for mark in marks])


def _gated(first: RecordedCall, second: RecordedCall) -> RecordedCall | None:
    """`silu_and_mul` of a linear layer's outputs, in the layer."""
    if first.kernel.name != "linear" or second.kernel.name != "silu_and_mul":
        return None
    layer, activation = first.arguments, second.arguments
    is_whole = layer.outputs == 2 * activation.size and layer.outputs % _PANELS == 0
    if not is_whole or layer.is_gated or layer.residual or not _reads(first, second, "x"):
        return None
    arguments = Linear.from_buffer_copy(layer)
    arguments.is_gated = 1
    return _with_output(first, second, arguments, ())


def _summed(first: RecordedCall, second: RecordedCall) -> RecordedCall | None:
    """A linear layer's outputs added to something, in the layer."""
    if first.kernel.name != "linear" or second.kernel.name != "combine":
        return None
    layer, total = first.arguments, second.arguments
    if total.operation != ADD or layer.is_gated or layer.residual or total.size != layer.outputs:
        return None
    if total.a_stride != total.size or total.b_stride != total.size:
        return None
    other = "b" if _reads(first, second, "a") else "a" if _reads(first, second, "b") else None
    found = None if other is None else _pointer(second, other)
    if found is None or found.buffer == _pointer(first, "out").buffer:  # type: ignore[union-attr]  # a layer has an output
        return None
    return _with_output(
        first, second, Linear.from_buffer_copy(layer), (replace(found, field_offset=Linear.residual.offset),)
    )


def _with_output(
    first: RecordedCall, second: RecordedCall, arguments: ctypes.Structure, more: tuple[Pointer, ...]
) -> RecordedCall | None:
    """The first call with the second one's output, where both are of the same rows."""
    out = _pointer(second, "out")
    if out is None or out.offset or first.rows_per_token != second.rows_per_token:
        return None
    others = tuple(pointer for pointer in first.pointers if pointer.field_offset != Linear.out.offset)
    pointers = (*others, *more, replace(out, field_offset=Linear.out.offset))
    return replace(first, arguments=arguments, pointers=pointers)


def _reads(first: RecordedCall, second: RecordedCall, field: str) -> bool:
    """Whether a field of the second call is what the first one writes."""
    written, read = _pointer(first, "out"), _pointer(second, field)
    return (
        written is not None
        and read is not None
        and (written.buffer, written.offset) == (read.buffer, read.offset)
    )


def _pointer(call: RecordedCall, field: str) -> Pointer | None:
    offset = getattr(type(call.arguments), field).offset
    return next((pointer for pointer in call.pointers if pointer.field_offset == offset), None)


def _is_private(layer: RecordedCall, buffers: Sequence[Buffer], result: int, number: int) -> bool:
    """Whether a layer's outputs are used by it and call `number` alone, which is the next one."""
    out = _pointer(layer, "out")
    if out is None or out.buffer == result:
        return False
    buffer = buffers[out.buffer]
    return buffer.first == number - 1 and buffer.last == number
