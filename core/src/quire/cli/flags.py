"""Flags derived from the models of the configuration and of the sampling parameters."""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from quire.api.config import SECTIONS
from quire.api.errors import ConfigError
from quire.api.request import SamplingParams
from quire.api.section import Section
from quire.api.speculative_config import OLDER_KEYWORDS
from quire.cli.docstrings import argument_help

CLI_SAMPLING_DEFAULTS: tuple[tuple[str, object], ...] = (("temperature", 0.0), ("max_tokens", 256))
"""Where the command line departs from the defaults of SamplingParams."""


@dataclass(slots=True, frozen=True)
class Setting:
    """A field of a model, as a flag.

    Attributes:
        name: the field's name, which is the keyword of `LLM` or `SamplingParams`.
        flag: without the dashes in front.
        annotation: its type. default: shown in the help; the flag itself has none.
    """

    name: str
    flag: str
    annotation: object
    default: object
    help: str

    @property
    def dest(self) -> str:
        """Where argparse stores it."""
        return self.flag.replace("-", "_")


def engine_settings() -> dict[str, list[Setting]]:
    """The fields of each section of EngineConfig.

    A name that SamplingParams has too (seed) gets the flag `--engine-NAME`.
    """
    sampling = {entry.name for entry in dataclasses.fields(SamplingParams)}
    sections: dict[str, list[Setting]] = {}
    for section, model in SECTIONS.items():
        sections[section] = [
            Setting(
                name,
                ("engine-" if name in sampling else "") + name.replace("_", "-"),
                entry.annotation,
                entry.default,
                entry.description or "",
            )
            for name, entry in model.model_fields.items()
        ]
    return sections


def model_settings(model: type[Section]) -> list[Setting]:
    """The fields of a model of settings."""
    return [
        Setting(name, name.replace("_", "-"), entry.annotation, entry.default, entry.description or "")
        for name, entry in model.model_fields.items()
    ]


def sampling_settings() -> list[Setting]:
    """The fields of SamplingParams, with the command line's defaults."""
    hints = typing.get_type_hints(SamplingParams)
    texts = argument_help(SamplingParams.__doc__ or "")
    defaults = dict(CLI_SAMPLING_DEFAULTS)
    return [
        Setting(
            entry.name,
            entry.name.replace("_", "-"),
            hints[entry.name],
            defaults.get(entry.name, entry.default),
            texts.get(entry.name, entry.name.replace("_", " ")),
        )
        for entry in dataclasses.fields(SamplingParams)
    ]


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Declare a flag for every field of EngineConfig."""
    for section, settings in engine_settings().items():
        group = parser.add_argument_group(section)
        for setting in settings:
            _add(group, setting)
    for name in OLDER_KEYWORDS:
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=_number, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Declare a flag for every field of SamplingParams."""
    group = parser.add_argument_group("sampling")
    for setting in sampling_settings():
        _add(group, setting)


def add_model_flags(parser: argparse.ArgumentParser, title: str, model: type[Section]) -> None:
    """Declare a flag for every field of a model of settings."""
    group = parser.add_argument_group(title)
    for setting in model_settings(model):
        _add(group, setting)


def given_of(args: argparse.Namespace, model: type[Section]) -> dict[str, object]:
    """The fields of a model of settings that were given as flags."""
    return _given(args, model_settings(model))


def engine_keywords(args: argparse.Namespace) -> dict[str, object]:
    """The engine's fields that were given as flags."""
    every = [setting for settings in engine_settings().values() for setting in settings]
    older = {name: vars(args)[name] for name in OLDER_KEYWORDS if name in vars(args)}
    return {**_given(args, every), **older}


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """The sampling parameters that the flags make; SamplingParamsError when out of bounds."""
    keywords: dict[str, typing.Any] = {**dict(CLI_SAMPLING_DEFAULTS), **_given(args, sampling_settings())}
    return SamplingParams(**keywords)


def sampling_keywords(args: argparse.Namespace) -> dict[str, object]:
    """The same as keywords: what was given, and where the command line departs from the defaults."""
    sampling_params(args)
    return {**dict(CLI_SAMPLING_DEFAULTS), **_given(args, sampling_settings())}


def _given(args: argparse.Namespace, settings: Sequence[Setting]) -> dict[str, object]:
    values = vars(args)
    return {
        setting.name: _read_json(setting, values[setting.dest])
        for setting in settings
        if setting.dest in values
    }


def _add(group: argparse._ArgumentGroup, setting: Setting) -> None:
    text = setting.help.replace("%", "%%")
    if setting.default not in (None, (), ""):
        text = f"{text} (default: {setting.default})"
    flag = f"--{setting.flag}"
    kind = _plain(setting.annotation)
    if kind is bool:
        action = argparse.BooleanOptionalAction
        group.add_argument(flag, action=action, default=argparse.SUPPRESS, help=text)
        return
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        group.add_argument(flag, choices=choices, default=argparse.SUPPRESS, help=text)
        return
    if _is_sequence(kind):
        convert = int if int in typing.get_args(kind) else str
        group.add_argument(
            flag,
            action="append",
            type=convert,
            metavar="X",
            default=argparse.SUPPRESS,
            help=f"{text}; repeatable",
        )
        return
    group.add_argument(
        flag, type=_converter(kind), metavar=_metavar(kind), default=argparse.SUPPRESS, help=text
    )


def _plain(annotation: object) -> object:
    """The type without None and Annotated; of `str | Sequence[str]` the sequence."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _plain(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        options = [_plain(option) for option in typing.get_args(annotation) if option is not type(None)]
        return next((option for option in options if _is_sequence(option)), options[0])
    return annotation


def _is_sequence(kind: object) -> bool:
    origin = typing.get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Sequence)


def _is_mapping(kind: object) -> bool:
    origin = typing.get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _converter(kind: object) -> Callable[[str], object]:
    return _number if kind in (int, float) else str


def _number(text: str) -> object:
    """A number where the text is one; the models read sizes ("16Ki") and refuse the rest by name."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def _read_json(setting: Setting, value: object) -> object:
    """A mapping out of its JSON; other values as they are. Not argparse's: it would hide the reason."""
    kind = _plain(setting.annotation)
    if not _is_mapping(kind) or not isinstance(value, str):
        return value
    example = """give an object such as '{"5": -2.0}'"""
    try:
        mapping = json.loads(value)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--{setting.flag}: {value!r} is not JSON ({error}): {example}") from None
    if not isinstance(mapping, dict):
        raise ConfigError(f"--{setting.flag}: {value!r} is not a JSON object: {example}")
    if typing.get_args(kind)[0] is not int:
        return mapping
    try:
        return {int(key): entry for key, entry in mapping.items()}
    except ValueError as error:
        raise ConfigError(f"--{setting.flag}: keys must be integers ({error}): {example}") from None


def _metavar(kind: object) -> str:
    if kind in (int, float):
        return "N"
    is_object = _is_mapping(kind) or (isinstance(kind, type) and issubclass(kind, Section))
    return "JSON" if is_object else "X"
