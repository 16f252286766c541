"""Fields of which only some values are served: others are refused by the field's name, with what to do instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from quire.api.foreign_fields import FOREIGN_FIELDS, ForeignField
from quire_serving.errors import ApiError

MAX_SHOWN = 64


@dataclass(slots=True, frozen=True, eq=False)  # typing keeps one of equal annotations, and 0 equals False
class Unserved:
    """Annotates a field of a request: null, what is empty, and the neutral values pass as they come.

    Others raise ApiError, which goes through pydantic as it is: the answer tells of no other field then.

    Attributes:
        remedy: what to do instead.
        neutral: values that are taken, besides null and what is empty.
        code: of the error.
        takes_empty: whether empty lists and objects ask for nothing.
    """

    remedy: str
    neutral: tuple[object, ...] = ()
    code: str = "unsupported_parameter"
    takes_empty: bool = True

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """See pydantic."""
        return core_schema.with_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """See pydantic."""
        empty: tuple[object, ...] = ([], {}) if self.takes_empty else ()
        return {"enum": [None, *empty, *self.neutral], "description": f"others are not served: {self.remedy}"}

    def _checked(self, value: object, info: ValidationInfo) -> object:
        if ForeignField(self.remedy, self.neutral).is_neutral(value) and (
            self.takes_empty or value not in ([], {})
        ):
            return value
        name = info.field_name or "the value"
        shown = f"={value!r:.{MAX_SHOWN}}" if isinstance(value, str | int | float) else ""
        message = f"{name}{shown} is not served by this version: {self.remedy}"
        raise ApiError(400, self.code, message, info.field_name)


RESPONSE_FORMAT = Unserved(
    "there are no grammars: check the output and ask again, or leave it out",
    ({"type": "text"},),
    code="response_format_unsupported",
    takes_empty=False,
)
TOOL_CHOICE = Unserved(
    'a call cannot be forced without grammars: give "auto", and ask for the call in words',
    ("auto", "none"),
    code="tool_choice_unsupported",
    takes_empty=False,
)


def foreign(name: str, code: str = "unsupported_parameter") -> Unserved:
    """The annotation for a field of SamplingParams that the engine does not serve."""
    field = FOREIGN_FIELDS[name]
    return Unserved(field.remedy, field.neutral, code)
