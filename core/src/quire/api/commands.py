"""What core lends to the commands of plugins."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from quire.api.client import EngineClient
from quire.api.config import EngineConfig
from quire.api.section import Section
from quire.api.serving import ServerExtensions


@dataclass(slots=True, frozen=True)
class EngineProcessOptions:
    """How an engine in a process of its own is watched.

    Attributes:
        watchdog_s: without forward progress for so long, while there is work, it is restarted.
        max_restarts: so many in a row without a single token end the server's engine for good.
        max_build_s: a process that has not built its engine after so long is ended, though it lives.
    """

    watchdog_s: float = 8.0
    max_restarts: int = 3
    max_build_s: float = 600.0


class CommandTools(Protocol):
    """For commands whose CommandSpec has `takes_tools`. Importing and calling it imports no torch."""

    def add_engine_flags(self, parser: argparse.ArgumentParser) -> None:
        """Declare `--config`, a flag for every field of EngineConfig, and those of plugins."""
        ...

    def add_flags(self, parser: argparse.ArgumentParser, title: str, model: type[Section]) -> None:
        """Declare a flag for every field of a model of settings, with its description and default."""
        ...

    def add_sampling_flags(self, parser: argparse.ArgumentParser) -> None:
        """Declare a flag for every field of SamplingParams."""
        ...

    def sampling_keywords(self, args: argparse.Namespace) -> dict[str, object]:
        """The flags of `add_sampling_flags` as keywords of SamplingParams, checked.

        Raises:
            SamplingParamsError: a value is out of bounds.
        """
        ...

    def engine_keywords(self, args: argparse.Namespace) -> dict[str, object]:
        """The engine's settings that were given as flags, as keywords of `LLM`, plugins' settings among them."""
        ...

    def engine_config(self, args: argparse.Namespace, model: str | None = None) -> EngineConfig:
        """What `--config`, environment and flags make together; raises ConfigError."""
        ...

    def given(self, args: argparse.Namespace, model: type[Section]) -> Mapping[str, object]:
        """The fields of `add_flags` that were given."""
        ...

    def plugin_options(self, config: EngineConfig, plugin: str) -> object:
        """A plugin's validated options (an instance of its options model), or None."""
        ...

    def server_extensions(self, config: EngineConfig) -> ServerExtensions:
        """What the enabled plugins bring for a server."""
        ...

    async def start_engine(
        self, config: EngineConfig, options: EngineProcessOptions | None = None
    ) -> EngineClient:
        """Start an engine, in a supervised process of its own, or in this one where `options` is None.

        Raises:
            QuireError: as building an engine; nothing stays behind.
        """
        ...
