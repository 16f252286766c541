"""The plugin's options: the section `[plugins.options.my-logits-processor]` of quire.toml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class MyLogitsProcessorOptions(BaseModel):
    """Every option has a default and a description; `quire plugins info my-logits-processor` shows them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strength: float = Field(1.0, ge=0, description="for requests that ask for it without a strength")


class MyLogitsProcessorArguments(BaseModel):
    """What a request may give."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strength: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="what each earlier occurrence takes off a token's logit"
    )
