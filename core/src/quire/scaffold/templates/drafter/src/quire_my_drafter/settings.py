"""The drafter's own keys of `speculative_config`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class MyDrafterSettings(BaseModel):
    """Every key has a default and a description; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    match_tokens: int = Field(2, ge=1, le=16, description="how many last tokens must have stood there before")

    def __str__(self) -> str:
        """What is printed when the engine starts."""
        return f"match_tokens={self.match_tokens}"
