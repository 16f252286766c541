"""Recorded calls that become one: what follows a linear layer is done while its sums are in registers.

Nothing is rounded otherwise than by the calls alone, so results stay the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    A sum that is normed in the same pass is done by the layer too; the norm is then a call of its own.

    Args:
        calls: recorded.
        buffers: of the calls.
        marks: numbers of calls.
        result: the buffer that stays what it is.
    """
    kept: list[RecordedCall] = []
    numbers: list[int] = []
    for number, call in enumerate(calls):
        fused = None
        if kept and _is_plain(kept[-1]) and _is_private(kept[-1], buffers, result, number):
            fused = _gated(kept[-1], call) or _added(kept[-1], call) or _normed(kept[-1], call)
        if fused is None:
            kept.append(call)
        else:
            kept[-1:] = fused
        numbers.append(len(kept) - 1)
    used = [replace(buffer, first=-1, last=-1) for buffer in buffers]
    for number, call in enumerate(kept):
        for pointer in call.pointers:
            buffer = used[pointer.buffer]
            buffer.first = number if buffer.first < 0 else buffer.first
            buffer.last = number
    return Fused(kept, used, [numbers[mark] for mark in marks])


def _gated(layer: RecordedCall, call: RecordedCall) -> list[RecordedCall] | None:
    """`silu_and_mul` of a linear layer's outputs, in the layer."""
    if call.kernel.name != "silu_and_mul":
        return None
    outputs = layer.arguments.outputs
    is_whole = outputs == 2 * call.arguments.size and outputs % _PANELS == 0
    out = _pointer(call, "out")
    if not is_whole or out is None or not _reads(layer, call, "x"):
        return None
    arguments = Linear.from_buffer_copy(layer.arguments)
    arguments.is_gated = 1
    return _with_output(replace(layer, arguments=arguments), call, out)


def _added(layer: RecordedCall, call: RecordedCall) -> list[RecordedCall] | None:
    """A linear layer's outputs added to something, in the layer."""
    if call.kernel.name != "combine" or call.arguments.operation != ADD:
        return None
    return _with_sum(layer, call, {"a": "a_stride", "b": "b_stride"}, "out")


def _normed(layer: RecordedCall, call: RecordedCall) -> list[RecordedCall] | None:
    """A norm of a linear layer's outputs and something: the sum in the layer, then the norm of the sum."""
    if call.kernel.name not in ("rms_norm", "layer_norm") or not call.arguments.residual:
        return None
    fused = _with_sum(layer, call, {"x": "row_stride", "residual": "residual_stride"}, "sum")
    total = _pointer(call, "sum")
    if fused is None or total is None:
        return None
    kind = type(call.arguments)
    arguments = kind.from_buffer_copy(call.arguments)
    arguments.residual = arguments.sum = None
    arguments.row_stride = arguments.size
    pointers = [replace(total, field_offset=kind.x.offset)]
    changed = {kind.x.offset, kind.residual.offset, kind.sum.offset}
    pointers += [pointer for pointer in call.pointers if pointer.field_offset not in changed]
    return [*fused, replace(call, arguments=arguments, pointers=tuple(pointers))]


def _is_plain(layer: RecordedCall) -> bool:
    """Whether a call is a linear layer that does nothing else yet."""
    if layer.kernel.name != "linear" or layer.arguments.is_gated:
        return False
    return _pointer(layer, "residual") is None


def _with_sum(
    layer: RecordedCall, call: RecordedCall, addends: Mapping[str, str], total: str
) -> list[RecordedCall] | None:
    """The layer, adding what the call adds to its outputs.

    Args:
        layer: plain, and read by the call.
        call: the next one.
        addends: its two fields, and those of their strides.
        total: the field of the sum.
    """
    if call.arguments.size != layer.arguments.outputs:
        return None
    if any(getattr(call.arguments, stride) != call.arguments.size for stride in addends.values()):
        return None
    others = [field for field in addends if not _reads(layer, call, field)]
    other = _pointer(call, others[0]) if len(others) == 1 else None
    out = _pointer(call, total)
    if other is None or out is None or other.buffer == _pointer(layer, "out").buffer:  # type: ignore[union-attr]  # it has one
        return None
    if other.buffer == out.buffer:  # rows that two of the layer's blocks share are written twice
        return None
    return _with_output(layer, call, out, replace(other, field_offset=Linear.residual.offset))


def _with_output(
    layer: RecordedCall, call: RecordedCall, out: Pointer, *more: Pointer
) -> list[RecordedCall] | None:
    """The layer with the call's output, where both are of the same rows."""
    if out.offset or layer.rows_per_token != call.rows_per_token:
        return None
    kept = tuple(pointer for pointer in layer.pointers if pointer.field_offset != Linear.out.offset)
    return [replace(layer, pointers=(*kept, *more, replace(out, field_offset=Linear.out.offset)))]


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
