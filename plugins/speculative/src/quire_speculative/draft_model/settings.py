"""The `draft-model` drafter's own key of `speculative_config`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator


class DraftModelSettings(BaseModel):
    """Which model drafts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        min_length=1,
        description="a folder, a name that a plugin resolves, or a hub id; its tokenizer must be the target's",
    )

    @field_validator("model", mode="before")
    @classmethod
    def _take_path(cls, value: object) -> object:
        return str(value) if isinstance(value, Path) else value

    def __str__(self) -> str:
        """The resolved values."""
        return f"model {self.model}"
