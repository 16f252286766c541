"""Types of fields of requests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from quire_serving.errors import ApiError


def _integral(value: object) -> object:
    """Integers out of floats without a fraction, since JSON knows one kind of numbers; others as they are."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list) and float in set(map(type, value)):
        return [_integral(each) for each in value]
    return value


INTEGRAL = BeforeValidator(_integral)
Natural = Annotated[int, Field(ge=0, le=2**31 - 1), INTEGRAL]
Positive = Annotated[int, Field(ge=1, le=2**31 - 1), INTEGRAL]


@dataclass(slots=True, frozen=True)
class Keys:
    """Annotates an object of a request: of its keys, which match a pattern, and their number."""

    pattern: str
    max_count: int

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """See pydantic."""
        return core_schema.with_info_before_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """See pydantic."""
        return handler(schema) | {"propertyNames": {"pattern": self.pattern}, "maxProperties": self.max_count}

    def _checked(self, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, dict):
            return value
        name = info.field_name
        if len(value) > self.max_count:
            message = f"{name} has {len(value)} keys, the limit is {self.max_count}: give fewer"
            raise ApiError(400, "invalid_request", message, name)
        for key in value:
            if re.fullmatch(self.pattern, key) is None:
                message = f"{name} has the key {key[:64]!r}: its keys match {self.pattern}"
                raise ApiError(400, "invalid_request", message, name)
        return value


METADATA_KEYS = Keys("^.{1,64}$", 16)  # OpenAI's limits
