"""`quire serve`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from pydantic import ValidationError

from quire.api.commands import CommandTools
from quire.api.errors import ConfigError
from quire.api.serving import ServerExtensions
from quire_serving.settings import ServeSettings
from quire_serving.signals import StopSignals

PLUGIN = "openai-server"


class ServeCommand:
    """Serves a model until it is told to end."""

    def __init__(self, tools: CommandTools) -> None:
        self._tools = tools

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """See Command."""
        parser.add_argument(
            "served_model", nargs="?", metavar="MODEL", help="the model, as --model (default: tiny)"
        )
        self._tools.add_flags(parser, "server", ServeSettings)
        self._tools.add_engine_flags(parser)

    def run(self, args: argparse.Namespace) -> int:
        """See Command."""
        signals = StopSignals()
        signals.install()
        config = self._tools.engine_config(args, _model(args))
        settings = overlaid(
            self._tools.plugin_options(config, PLUGIN), self._tools.given(args, ServeSettings)
        )
        extensions = self._tools.server_extensions(config)
        check_parsers(settings, extensions)
        from quire_serving.server import Server

        return Server(self._tools, config, settings, extensions, signals).run()


def _model(args: argparse.Namespace) -> str | None:
    given: str | None = args.served_model
    flag: str | None = getattr(args, "model", None)
    if given is not None and flag is not None and given != flag:
        raise ConfigError(f"MODEL is {given!r} and --model is {flag!r}: give one of them")
    return flag if given is None else given


def overlaid(options: object, given: Mapping[str, object]) -> ServeSettings:
    """The plugin's options under the flags that were given; raises ConfigError."""
    base = options.model_dump(exclude_unset=True) if isinstance(options, ServeSettings) else {}
    try:
        return ServeSettings.model_validate({**base, **given})
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"{flag} {first['input']}: {first['msg']}") from None


def check_parsers(settings: ServeSettings, extensions: ServerExtensions) -> None:
    """Refuse names of parsers that no plugin registers; raises ConfigError."""
    chosen = (
        ("--tool-call-parser", settings.tool_call_parser, extensions.tool_parsers),
        ("--reasoning-parser", settings.reasoning_parser, extensions.reasoning_parsers),
    )
    for flag, name, known in chosen:
        if name is not None and name not in known:
            names = ", ".join(sorted(known)) or "none: install a plugin that brings one"
            raise ConfigError(f"{flag} {name}: there is no such parser; there are: {names}")
