"""The plugin's options: the section `[plugins.options.my-route]` of quire.toml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class MyRouteOptions(BaseModel):
    """Every option has a default and a description; `quire plugins info my-route` shows them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    busy_at: int = Field(8, ge=1, description="requests that wait, from which on the server counts as busy")
