"""The `ngram` drafter's own keys of `speculative_config`."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_LENGTH = 64
"""Longest n-gram that can be asked for."""

DEFAULT_MIN = 2
DEFAULT_MAX = 16


class NgramSettings(BaseModel):
    """How long the n-grams are that are looked up. Where one of the two is unset it equals the other."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_lookup_min: int = Field(
        DEFAULT_MIN,
        ge=1,
        le=MAX_LENGTH,
        description="tokens that must be found again for a draft; unset: prompt_lookup_max where that is set",
    )
    prompt_lookup_max: int = Field(
        DEFAULT_MAX,
        ge=1,
        le=MAX_LENGTH,
        description="tokens that are compared to choose among occurrences; unset: prompt_lookup_min where that is set",
    )

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        given = {key: entry for key, entry in value.items() if entry is not None}
        shortest, longest = given.get("prompt_lookup_min"), given.get("prompt_lookup_max")
        if shortest is None and longest is not None:
            given["prompt_lookup_min"] = longest
        if longest is None and shortest is not None:
            given["prompt_lookup_max"] = shortest
        return given

    @model_validator(mode="after")
    def _check_order(self) -> NgramSettings:
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise ValueError(
                f"prompt_lookup_min ({self.prompt_lookup_min}) is greater than prompt_lookup_max "
                f"({self.prompt_lookup_max}): lower the first or raise the second"
            )
        return self

    def __str__(self) -> str:
        """The resolved values."""
        return f"prompt_lookup_min {self.prompt_lookup_min}, prompt_lookup_max {self.prompt_lookup_max}"
