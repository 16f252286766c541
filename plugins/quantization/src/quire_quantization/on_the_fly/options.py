"""The options of the methods that quantize while loading. Imports no torch."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from quire.api.quantization import StoredModule


class OnTheFlyOptions(BaseModel):
    """What `int8` and `int4` have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lm_head: bool = Field(True, description="quantize the LM head too; a tied embedding itself stays")
    ignore: tuple[str, ...] = Field(
        (),
        description="modules that stay in 16 bits: regular expressions, found anywhere in the checkpoint's names",
    )

    @field_validator("ignore")
    @classmethod
    def _check_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return patterns

    def skip_reason(self, module: StoredModule) -> str:
        """Why a module is left in 16 bits; "" where the options do not say that it is."""
        if module.is_head and not self.lm_head:
            return "lm_head is false"
        found = next((pattern for pattern in self.ignore if re.search(pattern, module.name)), None)
        return "" if found is None else f"ignore has {found!r}"


class Int8Options(OnTheFlyOptions):
    """What the section `[plugins.options.int8]` may say."""


class Int4Options(OnTheFlyOptions):
    """What the section `[plugins.options.int4]` may say."""

    group_size: Literal[-1, 32, 64, 128] = Field(
        32,
        description="inputs that share a scale, -1: all of a layer; where it does not divide a layer's inputs, "
        "the next smaller number that does",
    )
    symmetric: bool = Field(
        True,
        description="weights around a fixed zero; false: a zero point for each group, for a 2 % (groups of 128) to "
        "6 % (32) smaller error, and a quarter of a bit more per weight in groups of 32",
    )
