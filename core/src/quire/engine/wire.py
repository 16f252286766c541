"""How messages between an engine's process and the one above it travel: msgpack frames, typed on arrival."""

from __future__ import annotations

import dataclasses
import inspect
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from quire.api import errors
from quire.api.outputs import PositionLogprobs
from quire.api.request import SamplingParams
from quire.engine.messages import FromEngine, ToEngine

MAX_FRAME_BYTES = 1 << 30
MAX_PART_ENTRIES = 8192
"""Logprobs that one frame carries of a prompt: decoding them blocks the event loop for 10 ms or less."""
LENGTH = struct.Struct(">I")
"""What stands before each frame: its length."""


_ERRORS: dict[str, type[errors.QuireError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, errors.QuireError)
}
_PLAIN_PARAMS = SamplingParams()


class WireError(errors.QuireError):
    """A message cannot be sent as it is, or a frame is not what it should be."""


def _plain_error(value: object) -> list[str]:
    """An exception as the name of a class of `quire.api.errors`, its text, and the plugin at fault."""
    if not isinstance(value, Exception):
        raise NotImplementedError(
            f"{type(value).__name__} does not cross processes"
        )  # what msgspec asks of hooks
    text = str(value).encode("utf-8", "replace").decode()
    for kind in type(value).__mro__:
        if _ERRORS.get(kind.__name__) is kind:
            return [kind.__name__, text, str(getattr(value, "plugin", ""))]
    return ["StepError", f"{type(value).__name__}: {text}", ""]


def _rebuilt_error(kind: type, value: Any) -> Exception:
    """The opposite of `_plain_error`."""
    if kind is not Exception:
        raise NotImplementedError(f"{kind.__name__} does not cross processes")  # what msgspec asks of hooks
    name, text, plugin = value
    error = _ERRORS.get(name, errors.QuireError)(text)
    if isinstance(error, errors.ExtensionError):
        error.plugin = plugin
    return error


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain_error)
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine, dec_hook=_rebuilt_error)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(
    FromEngine, dec_hook=_rebuilt_error
)


def encode(message: ToEngine | FromEngine) -> bytes:
    """A message as a frame.

    Raises:
        CapacityError: it is too long.
        WireError: it holds what msgpack has not (an integer over 64 bits).
    """
    frame = bytearray(LENGTH.size)
    try:
        _encoder.encode_into(message, frame, LENGTH.size)
    except (msgspec.MsgspecError, NotImplementedError, OverflowError, TypeError, ValueError) as error:
        raise WireError(f"{type(message).__name__} cannot be sent: {error}") from None
    length = len(frame) - LENGTH.size
    if length > MAX_FRAME_BYTES:
        raise errors.CapacityError(
            f"{type(message).__name__} takes {length} bytes, the limit is {MAX_FRAME_BYTES}: "
            "ask for fewer logprobs, or for less at once"
        )
    LENGTH.pack_into(frame, 0, length)
    return bytes(frame)


def frame_length(header: bytes) -> int:
    """The length of the frame that follows; raises WireError where it is over the limit."""
    length: int = LENGTH.unpack(header)[0]
    if length > MAX_FRAME_BYTES:
        raise WireError(f"a frame of {length} bytes, the limit is {MAX_FRAME_BYTES}")
    return length


def decode_to_engine(body: bytes) -> ToEngine:
    """The message of a frame, its length taken off; raises WireError."""
    try:
        return _to_engine.decode(body)
    except msgspec.MsgspecError as error:
        raise WireError(f"a malformed frame: {error}") from None


def decode_from_engine(body: bytes) -> FromEngine:
    """The message of a frame, its length taken off; raises WireError."""
    try:
        return _from_engine.decode(body)
    except msgspec.MsgspecError as error:
        raise WireError(f"a malformed frame: {error}") from None


def in_parts(positions: Sequence[PositionLogprobs | None]) -> Iterator[list[PositionLogprobs | None]]:
    """A prompt's logprobs in pieces for one frame each; at least one piece."""
    part: list[PositionLogprobs | None] = []
    num_entries = 0
    for position in positions:
        num_entries += len(position or ())
        if part and num_entries > MAX_PART_ENTRIES:
            yield part
            part, num_entries = [], len(position or ())
        part.append(position)
    yield part


def plain_params(params: SamplingParams) -> dict[str, Any]:
    """The fields that differ from the defaults, as plain data; raises SamplingParamsError."""
    values = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    given = {name: value for name, value in values.items() if value != getattr(_PLAIN_PARAMS, name)}
    if "extra_args" in given:
        given["extra_args"] = params.extra_args_copy()
    if isinstance(given.get("logit_bias"), Mapping):
        given["logit_bias"] = dict(given["logit_bias"])
    return given


class Channel:
    """The engine's end: blocking; any thread may send, one receives."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._file = end.makefile("rb")
        self._lock = threading.Lock()

    def send(self, message: FromEngine) -> None:
        """Send a message whole; waits while the other side is behind. OSError where it is gone."""
        frame = encode(message)
        with self._lock:
            self._socket.sendall(frame)

    def receive(self) -> ToEngine | None:
        """The next message; None where the other side is gone."""
        header = self._file.read(LENGTH.size)
        if len(header) < LENGTH.size:
            return None
        length = frame_length(header)
        body = self._file.read(length)
        return decode_to_engine(body) if len(body) == length else None
