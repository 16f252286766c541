"""Types of fields whose limits are the server's own: its OpenAPI schema tells these in place of the protocol's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypeAliasType

from quire_serving.protocol.fields import INTEGRAL
from quire_serving.state import ServerState

# Named types are components of the schema, where `tell_limits` finds them.
ModelName = TypeAliasType("ModelName", Annotated[str, Field(max_length=512)])
TokenId = TypeAliasType("TokenId", Annotated[int, Field(ge=0, le=2**31 - 1)])
TokenIds = TypeAliasType(
    "TokenIds", Annotated[list[TokenId], Field(min_length=1, max_length=2**21, fail_fast=True), INTEGRAL]
)
_MANY = Field(min_length=1, max_length=16384, fail_fast=True)
Texts = TypeAliasType("Texts", Annotated[list[str], _MANY])
TokenLists = TypeAliasType("TokenLists", Annotated[list[TokenIds], _MANY])
NumChoices = TypeAliasType("NumChoices", Annotated[int, Field(ge=1, le=16384), INTEGRAL])
NumLogprobs = TypeAliasType("NumLogprobs", Annotated[int, Field(ge=-1, le=2**31 - 1), INTEGRAL])
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def tell_limits(schema: dict[str, Any], state: ServerState) -> None:
    """Put what this server serves into an OpenAPI schema, in place; and write its bounds of integers as integers."""
    what, settings = state.client.description, state.settings
    limits: Mapping[str, Mapping[str, object]] = {
        "ModelName": {"enum": list(state.model_names)},
        "TokenId": {"maximum": what.vocab_size - 1},
        "TokenIds": {"maxItems": what.max_model_len - 1},
        "Texts": {"maxItems": settings.max_prompts},
        "TokenLists": {"maxItems": settings.max_prompts},
        "NumChoices": {"maximum": settings.max_n},
        "NumLogprobs": {"minimum": 0, "maximum": settings.max_logprobs},
    }
    for name, values in limits.items():
        schema["components"]["schemas"][name] |= values
    for each in _objects(schema):
        if each.get("type") == "integer":
            each |= {name: int(each[name]) for name in _BOUNDS if name in each}


def _objects(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _objects(each)
