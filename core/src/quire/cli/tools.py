"""What core lends to the commands of plugins: see `quire.api.commands.CommandTools`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from quire.api.client import EngineClient
from quire.api.commands import EngineProcessOptions
from quire.api.config import EngineConfig
from quire.api.section import Section
from quire.api.serving import ServerExtensions
from quire.cli.flags import (
    add_engine_flags,
    add_model_flags,
    add_sampling_flags,
    engine_keywords,
    given_of,
    sampling_keywords,
)
from quire.cli.plugin_flags import add_plugin_flags, plugin_settings
from quire.plugins import PluginHost
from quire.plugins.server_parts import server_extensions


class HostTools:
    """CommandTools of a command line, whose plugins were loaded already."""

    def __init__(self, host: PluginHost) -> None:
        self._host = host

    def add_engine_flags(self, parser: argparse.ArgumentParser) -> None:
        """See CommandTools."""
        add_engine_flags(parser)
        add_plugin_flags(parser)

    def add_flags(self, parser: argparse.ArgumentParser, title: str, model: type[Section]) -> None:
        """See CommandTools."""
        add_model_flags(parser, title, model)

    def add_sampling_flags(self, parser: argparse.ArgumentParser) -> None:
        """See CommandTools."""
        add_sampling_flags(parser)

    def sampling_keywords(self, args: argparse.Namespace) -> dict[str, object]:
        """See CommandTools."""
        return sampling_keywords(args)

    def engine_keywords(self, args: argparse.Namespace) -> dict[str, object]:
        """See CommandTools."""
        return {**engine_keywords(args), "plugins": plugin_settings(args)}

    def engine_config(self, args: argparse.Namespace, model: str | None = None) -> EngineConfig:
        """See CommandTools."""
        keywords = self.engine_keywords(args)
        if model is not None:
            keywords["model"] = model
        return EngineConfig.from_keywords(keywords, args.config)

    def given(self, args: argparse.Namespace, model: type[Section]) -> Mapping[str, object]:
        """See CommandTools."""
        return given_of(args, model)

    def plugin_options(self, config: EngineConfig, plugin: str) -> object:
        """See CommandTools."""
        return self._strict_host(config).options(plugin)

    def server_extensions(self, config: EngineConfig) -> ServerExtensions:
        """See CommandTools."""
        return server_extensions(self._strict_host(config))

    async def start_engine(
        self, config: EngineConfig, options: EngineProcessOptions | None = None
    ) -> EngineClient:
        """See CommandTools."""
        from quire.loading.template_setting import read_template

        read_template(config.model.chat_template)  # a wrong one is told before anything is loaded
        if options is not None:
            from quire.engine.supervisor import SupervisedEngine

            return await SupervisedEngine.start(config, options)
        from quire.engine.local_client import LocalEngine

        return await LocalEngine.start(config)

    def _strict_host(self, config: EngineConfig) -> PluginHost:
        """The command line's plugins were loaded leniently; a server refuses what failed."""
        if self._host.settings == config.plugins and not any(record.error for record in self._host.records):
            return self._host
        self._host = PluginHost.discover(config.plugins)
        return self._host
