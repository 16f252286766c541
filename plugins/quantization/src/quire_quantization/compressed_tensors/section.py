"""Typed reading of a quantization_config's values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from quire.api.errors import QuantizationError

Value = TypeVar("Value", str, int, bool)


@dataclass(slots=True, frozen=True)
class Section:
    """A JSON object of a quantization_config.

    Attributes:
        place: what messages call it.
    """

    values: Mapping[str, object]
    place: str

    @classmethod
    def of(cls, value: object, place: str) -> Section:
        """A JSON object; QuantizationError where the value is none."""
        if not isinstance(value, Mapping):
            raise QuantizationError(f"{place}={value!r} must be a JSON object; fetch config.json again")
        return cls(value, place)

    def optional(self, key: str, kind: type[Value]) -> Value | None:
        """A value, None where it is absent or null; QuantizationError where it is of another type."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise QuantizationError(
                f"{self.place}.{key}={value!r} must be of type {kind.__name__}; fetch config.json again"
            )
        return value

    def get(self, key: str, default: Value) -> Value:
        """A value of the default's type; the default where it is absent or null."""
        found = self.optional(key, type(default))
        return default if found is None else found

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; () where it is absent or null."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or not all(isinstance(entry, str) for entry in value):
            raise QuantizationError(f"{self.place}.{key}={value!r} must be a list of strings")
        return tuple(value)

    def pair(self, key: str) -> tuple[int, int] | None:
        """Two positive integers, also in the older spelling "128x128"; None where absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        parts = value.split("x") if isinstance(value, str) else value
        entries = list(parts) if isinstance(parts, list | tuple) else []
        numbers = [int(entry) for entry in entries if str(entry).isdecimal()]
        if len(numbers) != 2 or len(entries) != 2 or min(numbers) < 1:
            raise QuantizationError(f"{self.place}.{key}={value!r} must be two positive integers")
        return numbers[0], numbers[1]

    def refuse(self, key: str, found: object, expected: str, remedy: str) -> QuantizationError:
        """The error for a value that is well-formed and not served."""
        return QuantizationError(
            f"{self.place}.{key}={found!r} is not supported: expected {expected}; {remedy}"
        )
