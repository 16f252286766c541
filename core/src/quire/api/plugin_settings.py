"""The settings of plugins, from keywords and flags, the environment and a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, cast

from pydantic import AfterValidator, Field

from quire.api.errors import ConfigError
from quire.api.section import FrozenDict, Section, ValueT

ENVIRONMENT_VARIABLE = "QUIRE_PLUGINS"
"""Names, separated by commas, with "-" before those to deny; or the whole section as a JSON object."""


def _freeze(value: Mapping[str, ValueT]) -> Mapping[str, ValueT]:
    return FrozenDict({key: _frozen_value(entry) for key, entry in value.items()})


def _frozen_value(value: ValueT) -> ValueT:
    if isinstance(value, Mapping):
        return cast(ValueT, _freeze(value))
    if isinstance(value, list):
        return cast(ValueT, tuple(_frozen_value(entry) for entry in value))
    return value


class OrderSettings(Section):
    """Where one plugin stands among the others."""

    before: tuple[str, ...] = Field((), description="plugins that are loaded later than this one")
    after: tuple[str, ...] = Field((), description="plugins that are loaded earlier than this one")


class PluginSettings(Section):
    """Which plugins are loaded, in which order, and what they are told."""

    allow: tuple[str, ...] | None = Field(
        None, description="load only these plugins; one that is not installed is an error"
    )
    deny: tuple[str, ...] = Field((), description="never load these plugins; wins over allow")
    autoload: bool = Field(
        True, description="load every installed plugin that is not denied; false loads only the allowed"
    )
    optional: tuple[str, ...] = Field(
        (),
        description=(
            "plugins without which the engine may start: one that cannot be loaded is logged and left out; "
            "wrong options are an error all the same"
        ),
    )
    prefer: Annotated[Mapping[str, str], AfterValidator(_freeze)] = Field(
        default_factory=FrozenDict,
        description=(
            'which plugin serves what several register: "kind:name" to the plugin, e.g. '
            '"architecture:LlamaForCausalLM" to "my-llama"; "plugin:name" to a distribution'
        ),
    )
    order: Annotated[Mapping[str, OrderSettings], AfterValidator(_freeze)] = Field(
        default_factory=FrozenDict, description="per plugin, `before` and `after`: names of plugins"
    )
    options: Annotated[Mapping[str, Mapping[str, object]], AfterValidator(_freeze)] = Field(
        default_factory=FrozenDict,
        description="per plugin, its options; `quire plugins info NAME` lists them",
    )
    trace: bool = Field(False, description="log every call of a plugin with its time and its answer")
    observer_time_limit_s: float = Field(
        1.0, gt=0, description="an observer whose call takes longer is detached"
    )


def merge_plugin_settings(layers: Sequence[PluginSettings]) -> PluginSettings:
    """One from several, weakest first: what a layer sets wins over the layers before it.

    Deny lists add up. Mappings are merged by key, options by plugin and key.
    """
    merged: dict[str, object] = {}
    for layer in layers:
        for name in layer.model_fields_set:
            value = getattr(layer, name)
            if name == "deny":
                value = tuple(dict.fromkeys((*cast("tuple[str, ...]", merged.get(name, ())), *value)))
            elif isinstance(value, Mapping):
                value = _merge_mappings(cast("Mapping[str, object]", merged.get(name, {})), value)
            merged[name] = value
    return PluginSettings.model_validate(merged)


def read_environment(text: str | None) -> dict[str, object]:
    """The section that QUIRE_PLUGINS describes; empty where it is unset or blank.

    Raises:
        ConfigError: it starts like a JSON object and is none, or a name has a space in it.
    """
    text = (text or "").strip()
    if not text:
        return {}
    if text.startswith("{"):
        try:
            return cast("dict[str, object]", json.loads(text))
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{ENVIRONMENT_VARIABLE}={text!r} is not valid JSON ({error}): write names separated by commas, "
                'or an object such as {"deny": ["name"]}'
            ) from None
    names = [name.strip() for name in text.split(",") if name.strip()]
    spaced = next((name for name in names if len(name.split()) > 1), None)
    if spaced is not None:
        raise ConfigError(
            f"{ENVIRONMENT_VARIABLE}={text!r}: {spaced!r} has a space; separate names by commas"
        )
    section: dict[str, object] = {}
    allowed = [name for name in names if not name.startswith("-")]
    denied = [name[1:].strip() for name in names if name.startswith("-")]
    if allowed:
        section["allow"] = allowed
    if denied:
        section["deny"] = denied
    return section


def _merge_mappings(weak: Mapping[str, object], strong: Mapping[str, object]) -> dict[str, object]:
    merged = dict(weak)
    for key, value in strong.items():
        old = merged.get(key)
        is_nested = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = {**old, **value} if is_nested else value  # type: ignore[dict-item]  # both are mappings
    return merged
