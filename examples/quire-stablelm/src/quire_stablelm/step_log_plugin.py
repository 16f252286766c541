"""The plugin `step-log`: an observer that writes a line of JSON per step. Imports only `quire.api`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from quire.api.config import EngineConfig
from quire.api.extensions import EngineObserver
from quire.api.hookspecs import hookimpl
from quire.api.specs import PluginInfo


class StepLogOptions(BaseModel):
    """What the section `[plugins.options.step-log]` may say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(Path("quire-steps.jsonl"), description="the file that lines are added to")
    every: int = Field(1, ge=1, description="write every n-th step; ends of requests are always written")


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification. A log changes no output."""
    return PluginInfo(
        api=">=1,<2",
        description="a line of JSON per step and per finished request",
        options=StepLogOptions,
        runs_in=("engine",),
        affects_outputs=False,
    )


@hookimpl
def quire_create_observers(config: EngineConfig, options: StepLogOptions) -> list[EngineObserver]:
    """See the hook specification."""
    from quire_stablelm.step_log import StepLog

    return [StepLog(options.path, options.every)]
