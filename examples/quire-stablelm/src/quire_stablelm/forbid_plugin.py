"""The plugin `forbid`: tokens that must not appear. Imports only `quire.api`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from quire.api.hookspecs import hookimpl
from quire.api.specs import LogitsProcessorSpec, PluginInfo


class ForbidOptions(BaseModel):
    """What the section `[plugins.options.forbid]` may say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token_ids: tuple[int, ...] = Field((), description="tokens that no request may generate")
    max_ids: int = Field(256, ge=1, description="most tokens that one request may forbid")


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(
        api=">=1,<2",
        description="tokens that must not appear, for all or for one request",
        options=ForbidOptions,
    )


@hookimpl
def quire_register_logits_processors() -> list[LogitsProcessorSpec]:
    """See the hook specification. It is always on: the options may forbid a token for every request."""
    return [LogitsProcessorSpec("forbid", "quire_stablelm.forbid:ForbidFactory", is_always_on=True)]
