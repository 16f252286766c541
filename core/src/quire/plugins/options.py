"""A plugin's options: its pydantic model, and validating what the settings give."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel, ValidationError

from quire.api.errors import ConfigError, PluginError
from quire.api.specs import PluginInfo
from quire.plugins.registry import nearest, resolve_factory


class OptionText(str):
    """An option's value off a command line: text that is JSON where the text itself does not fit."""

    __slots__ = ()


class OptionsError(ConfigError):
    """What the settings say of a plugin's options is wrong: the settings' fault, not the plugin's."""


def options_model(info: PluginInfo) -> type[BaseModel] | None:
    """The model of a plugin's options; None when it has none.

    Raises:
        PluginError: `PluginInfo.options` is no pydantic model and names none.
    """
    if info.options is None:
        return None
    model = resolve_factory(info.options)
    if not (inspect.isclass(model) and issubclass(model, BaseModel)):
        raise PluginError(f"PluginInfo.options is {model!r}, expected a pydantic model or 'module:Class'")
    return model


def validate_options(plugin: str, model: type[BaseModel] | None, given: Mapping[str, object]) -> object:
    """An instance of the plugin's options model; None when it has none.

    Raises:
        OptionsError: an unknown key (with the nearest one), or a value that the model refuses.
        PluginError: the model itself fails.
    """
    if model is None:
        if given:
            raise OptionsError(
                f"plugins.options.{plugin}: the plugin takes no options; leave {', '.join(sorted(given))} out"
            )
        return None
    return validate_model(model, given, f"plugins.options.{plugin}")


def validate_model(model: type[BaseModel], given: Mapping[str, object], path: str) -> BaseModel:
    """An instance of a plugin's model of settings.

    Args:
        model: unknown keys are refused, whatever it says of them.
        given: the settings.
        path: where they stand, for messages.

    Raises:
        OptionsError: an unknown key (with the nearest one), or a value that the model refuses.
        PluginError: the model itself fails.
    """
    for place, unknown, valid in _unknown_keys(model, given, path):
        raise OptionsError(f"{place} has no option {unknown!r}: {nearest(unknown, valid)}")
    try:
        return _build(model, given)
    except ValidationError as error:
        raise OptionsError(_describe(path, error)) from None
    except Exception as error:
        raise PluginError(f"its options model failed: {type(error).__name__}: {error}") from error


def _build(model: type[BaseModel], given: Mapping[str, object]) -> BaseModel:
    """Validate; text off a command line is tried as text first, and as JSON where the model refuses that."""
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        parsed: Mapping[str, object] = given
        for problem in error.errors(include_url=False):
            parsed = _with_json(parsed, problem["loc"])
        if parsed == given:
            raise
        return model.model_validate(dict(parsed))


def _with_json(given: Mapping[str, object], place: Sequence[int | str]) -> Mapping[str, object]:
    """`given` with the text at `place` replaced by what it says as JSON."""
    if not place or place[0] not in given:
        return given
    key = str(place[0])
    value = given[key]
    replaced = _with_json(value, place[1:]) if isinstance(value, Mapping) else _parsed(value)
    return {**given, key: replaced}


def _parsed(value: object) -> object:
    if not isinstance(value, OptionText):
        return value
    try:
        parsed: object = json.loads(value)
    except json.JSONDecodeError:
        return value
    return parsed


def _unknown_keys(
    model: type[BaseModel], given: Mapping[str, object], path: str
) -> Iterator[tuple[str, str, list[str]]]:
    """Keys that no field takes, here and in nested models, whatever the models say of extra keys."""
    fields = {(entry.alias or name): entry for name, entry in model.model_fields.items()}
    names = {*fields, *model.model_fields}
    for key, value in given.items():
        if key not in names:
            yield path, key, sorted(fields)
            continue
        entry = fields.get(key) or model.model_fields[key]
        nested = _nested_model(entry.annotation)
        value = _parsed(value)
        if nested is not None and isinstance(value, Mapping):
            yield from _unknown_keys(nested, value, f"{path}.{key}")


def _nested_model(annotation: object) -> type[BaseModel] | None:
    """The model that a field holds, alone or beside None."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        options = [entry for entry in typing.get_args(annotation) if entry is not type(None)]
        return _nested_model(options[0]) if len(options) == 1 else None
    return annotation if inspect.isclass(annotation) and issubclass(annotation, BaseModel) else None


def _describe(path: str, error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        place = ".".join([path, *(str(part) for part in problem["loc"])])
        message = problem["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        is_missing = problem["type"] == "missing"
        lines.append(f"{place} is required" if is_missing else f"{place}={problem['input']!r}: {message}")
    return "; ".join(lines)
