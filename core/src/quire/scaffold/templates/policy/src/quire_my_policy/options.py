"""The plugin's options: the section `[plugins.options.my-policy]` of quire.toml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class MyPolicyOptions(BaseModel):
    """Every option has a default and a description; `quire plugins info my-policy` shows them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bucket_tokens: int = Field(
        64, ge=1, description="prompts whose lengths fall into the same bucket of this width count as equal"
    )
