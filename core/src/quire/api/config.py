"""One engine configuration, of small sections, and where it is read from: keywords, a file, the environment."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from quire.api.errors import ConfigError
from quire.api.foreign_keywords import check_foreign_keyword
from quire.api.plugin_settings import (
    ENVIRONMENT_VARIABLE,
    OrderSettings,
    PluginSettings,
    merge_plugin_settings,
    read_environment,
)
from quire.api.section import Section
from quire.api.sections import (
    SECTIONS,
    CacheSettings,
    DeviceSettings,
    ModelSettings,
    SchedulerSettings,
    SpeculationSettings,
)
from quire.api.setting_types import DTypeSetting, KVCacheDTypeSetting, PathOrName, Size
from quire.api.speculative_config import SpeculativeConfig, take_older_keywords

__all__ = [
    "SECTIONS",
    "CacheSettings",
    "DTypeSetting",
    "DeviceSettings",
    "EngineConfig",
    "KVCacheDTypeSetting",
    "ModelSettings",
    "PathOrName",
    "PluginSettings",
    "SchedulerSettings",
    "Section",
    "Size",
    "SpeculationSettings",
    "SpeculativeConfig",
    "layered_plugin_settings",
    "read_toml",
]


class EngineConfig(Section):
    """Everything that an engine is told."""

    model: ModelSettings = ModelSettings()
    cache: CacheSettings = CacheSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    speculation: SpeculationSettings = SpeculationSettings()
    device: DeviceSettings = DeviceSettings()
    plugins: PluginSettings = PluginSettings()

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, object], file: str | Path | None = None) -> EngineConfig:
        """Build from flat keywords over the sections of a `quire.toml`.

        The plugins' settings come from keywords over the variable QUIRE_PLUGINS over the file; deny
        lists add up.

        Args:
            keywords: field names of any section, and `plugins` (a PluginSettings or a mapping).
            file: a TOML file of sections; its values yield to keywords.

        Raises:
            ConfigError: an unknown name (with the nearest valid one), a value out of bounds, or a
                malformed file.
        """
        sections: dict[str, dict[str, object]] = {} if file is None else read_toml(Path(file))
        given: object = None
        owner = {name: section for section, model in SECTIONS.items() for name in model.model_fields}
        for name, value in take_older_keywords(keywords).items():
            if value is None:
                continue  # None is the default, whatever that is
            if name == "plugins":
                given = value
            elif name in owner:
                sections.setdefault(owner[name], {})[name] = value
            else:
                check_foreign_keyword(name, value, [*owner, "plugins"])
        from_file = sections.pop("plugins", {})
        plugins = layered_plugin_settings(from_file, _plugin_keywords(given))
        return cls.validated({**sections, "plugins": plugins})

    @classmethod
    def validated(cls, sections: Mapping[str, object]) -> EngineConfig:
        """Validate nested sections; pydantic's complaints become one ConfigError."""
        try:
            config = cls.model_validate(sections)
        except ValidationError as error:
            raise ConfigError(_describe(error)) from None
        if config.model.trust_remote_code:
            raise ConfigError(
                "trust_remote_code=True is refused: Quire runs no code from checkpoints. Install a plugin that "
                "registers the architecture (quire_register_models) and leave the setting out"
            )
        if config.device.tensor_parallel_size != 1:
            raise ConfigError(
                f"tensor_parallel_size={config.device.tensor_parallel_size}: this version runs one rank; give 1"
            )
        return config


def read_toml(file: Path) -> dict[str, dict[str, object]]:
    """The sections of a TOML file; ConfigError when it cannot be read or is not made of tables."""
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from None
    for key, value in data.items():
        if key not in EngineConfig.model_fields or not isinstance(value, dict):
            valid = ", ".join(f"[{name}]" for name in EngineConfig.model_fields)
            raise ConfigError(f"{file}: {key!r} is not a section; the sections are {valid}")
    return cast("dict[str, dict[str, object]]", data)


def layered_plugin_settings(
    from_file: Mapping[str, object], given: PluginSettings, environment: Mapping[str, str] = os.environ
) -> PluginSettings:
    """The plugins' settings of a file, the environment and a program or command line, weakest first.

    Raises:
        ConfigError: the section of the file, or the variable QUIRE_PLUGINS, is malformed.
    """
    layers = [_plugin_section(from_file, "")]
    from_environment = read_environment(environment.get(ENVIRONMENT_VARIABLE))
    if from_environment:
        layers.append(_plugin_section(from_environment, f"{ENVIRONMENT_VARIABLE}: "))
    return merge_plugin_settings([*layers, given])


def _plugin_section(section: Mapping[str, object], source: str) -> PluginSettings:
    try:
        return EngineConfig.validated({"plugins": section}).plugins
    except ConfigError as error:
        raise ConfigError(f"{source}{error}") from None


def _plugin_keywords(value: object) -> PluginSettings:
    if value is None:
        return PluginSettings()
    if isinstance(value, PluginSettings):
        return value
    if isinstance(value, Mapping):
        return _plugin_section({str(key): entry for key, entry in value.items()}, "")
    names = ", ".join(PluginSettings.model_fields)
    raise ConfigError(f"plugins={value!r}: give a mapping with {names}")


def _section_at(place: Sequence[str]) -> type[Section]:
    if len(place) == 1:
        return EngineConfig
    return OrderSettings if place[:2] == ["plugins", "order"] else SECTIONS.get(place[0], PluginSettings)


def _describe(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        place = [str(part) for part in problem["loc"]]
        name = place[-1] if place else "configuration"
        path = ".".join(place[1:]) or name
        if problem["type"] == "extra_forbidden":
            section = _section_at(place)
            near = difflib.get_close_matches(name, list(section.model_fields), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"valid are {', '.join(section.model_fields)}"
            lines.append(f"unknown setting {'.'.join(place)!r}; {hint}")
        else:
            value: Any = problem.get("input")
            text = "give a list" if problem["type"] == "tuple_type" else problem["msg"]
            text = text.removeprefix("Value error, ")
            lines.append(f"{path}={value!r}: {text[0].lower()}{text[1:]}")
    return "; ".join(lines)
