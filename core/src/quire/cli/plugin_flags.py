"""The flags that choose plugins. They are read before the commands, which plugins may bring."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from quire.api.config import EngineConfig, PluginSettings, layered_plugin_settings, read_toml
from quire.api.errors import ConfigError
from quire.plugins.options import OptionText


def add_plugin_flags(parser: argparse.ArgumentParser) -> None:
    """Declare `--config` and a flag for every setting of plugins."""
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
    group.add_argument(
        "--plugin-optional",
        action="append",
        metavar="NAME",
        help="start without this plugin if it fails; repeatable",
    )
    group.add_argument(
        "--plugin-option",
        action="append",
        metavar="NAME.KEY=VALUE",
        help="an option of a plugin, as text or JSON; repeatable",
    )
    group.add_argument(
        "--plugin-prefer",
        action="append",
        metavar="KIND:NAME=PLUGIN",
        help="which plugin serves what several register, e.g. architecture:LlamaForCausalLM=my-llama; repeatable",
    )
    group.add_argument(
        "--plugin-order",
        action="append",
        metavar="FIRST,SECOND,...",
        help="load these plugins in this order; repeatable",
    )
    group.add_argument(
        "--plugin-observer-time-limit-s",
        type=float,
        metavar="N",
        help="detach an observer whose call takes longer (default: 1)",
    )
    group.add_argument(
        "--trace-plugins", action="store_true", help="log every call of a plugin with its time and its answer"
    )


def plugin_settings(args: argparse.Namespace) -> PluginSettings:
    """What the file of `--config`, QUIRE_PLUGINS and the flags make together; flags win.

    Raises:
        ConfigError: a flag, the variable or the file is malformed.
    """
    file: Path | None = args.config
    from_file = read_toml(file).get("plugins", {}) if file else {}
    given = EngineConfig.validated({"plugins": _from_flags(args)}).plugins
    return layered_plugin_settings(from_file, given)


def read_plugin_settings(arguments: Sequence[str]) -> PluginSettings:
    """The same, from a raw command line in which other flags are unknown yet."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_plugin_flags(parser)
    try:
        args, _ = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError:
        return PluginSettings()  # the command's own parser will complain, with its usage
    return plugin_settings(args)


def _from_flags(args: argparse.Namespace) -> dict[str, object]:
    section: dict[str, object] = {}
    if args.plugin:
        section["allow"] = args.plugin
    if args.no_plugin:
        section["deny"] = args.no_plugin
    if args.no_plugin_autoload:
        section["autoload"] = False
    if args.plugin_optional:
        section["optional"] = args.plugin_optional
    if args.plugin_option:
        section["options"] = _options(args.plugin_option)
    if args.plugin_prefer:
        section["prefer"] = dict(
            _split(text, "--plugin-prefer", "KIND:NAME=PLUGIN") for text in args.plugin_prefer
        )
    if args.plugin_order:
        section["order"] = _order(args.plugin_order)
    if args.plugin_observer_time_limit_s is not None:
        section["observer_time_limit_s"] = args.plugin_observer_time_limit_s
    if args.trace_plugins:
        section["trace"] = True
    return section


def _options(texts: Sequence[str]) -> dict[str, dict[str, object]]:
    """Options by plugin; a key may be dotted for nested options."""
    form = "NAME.KEY=VALUE"
    options: dict[str, dict[str, object]] = {}
    for text in texts:
        place, separator, value = text.partition("=")
        name, *keys = [part.strip() for part in place.split(".")]
        if not (separator and name and keys and all(keys)):
            raise ConfigError(f"--plugin-option {text!r}: write {form}")
        section = options.setdefault(name, {})
        for key in keys[:-1]:
            nested = section.setdefault(key, {})
            if not isinstance(nested, dict):
                raise ConfigError(f"--plugin-option {text!r}: {key!r} was given a value already")
            section = nested
        section[keys[-1]] = OptionText(value)
    return options


def _order(texts: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    order: dict[str, dict[str, list[str]]] = {}
    for text in texts:
        names = [name.strip() for name in text.split(",")]
        if len(names) < 2 or not all(names):
            raise ConfigError(f"--plugin-order {text!r}: write at least two names, FIRST,SECOND")
        for first, second in zip(names, names[1:], strict=False):
            order.setdefault(second, {"after": []})["after"].append(first)
    return order


def _split(text: str, flag: str, form: str) -> tuple[str, str]:
    key, separator, value = text.rpartition("=")
    if not (separator and key.strip() and value.strip()):
        raise ConfigError(f"{flag} {text!r}: write {form}")
    return key.strip(), value.strip()
