"""The flags that choose plugins. They are read before the commands, which plugins may bring."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from quire.api.config import EngineConfig, PluginSettings, read_toml


def add_plugin_flags(parser: argparse.ArgumentParser) -> None:
    """Declare `--config`, `--plugin`, `--no-plugin` and `--no-plugin-autoload`."""
    group = parser.add_argument_group("plugins")
    group.add_argument(
        "--config", type=Path, metavar="FILE", help="a quire.toml; flags win over what it says"
    )
    group.add_argument(
        "--plugin", action="append", metavar="NAME", help="load only this plugin (may be given several times)"
    )
    group.add_argument(
        "--no-plugin", action="append", metavar="NAME", help="never load this plugin; wins over --plugin"
    )
    group.add_argument(
        "--no-plugin-autoload", action="store_true", help="load no plugin that is not named with --plugin"
    )


def plugin_settings(args: argparse.Namespace) -> PluginSettings:
    """The settings that the flags and the file of `--config` make together; flags win."""
    file: Path | None = args.config
    from_file = read_toml(file).get("plugins", {}) if file else {}
    settings = EngineConfig.validated({"plugins": from_file}).plugins
    changes: dict[str, object] = {}
    if args.plugin:
        changes["allow"] = tuple(args.plugin)
    if args.no_plugin:
        changes["deny"] = (*settings.deny, *args.no_plugin)
    if args.no_plugin_autoload:
        changes["autoload"] = False
    return settings.model_copy(update=changes)


def read_plugin_settings(arguments: Sequence[str]) -> PluginSettings:
    """The same, from a raw command line in which other flags are unknown yet."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_plugin_flags(parser)
    try:
        args, _ = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError:
        return PluginSettings()  # the command's own parser will complain, with its usage
    return plugin_settings(args)
