"""The plugin's options: the section `[plugins.options.my-observer]` of quire.toml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class MyObserverOptions(BaseModel):
    """Every option has a default and a description; `quire plugins info my-observer` shows them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_every: int = Field(100, ge=1, description="finished requests between two lines of the log")
