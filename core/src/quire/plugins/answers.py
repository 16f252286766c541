"""What the hooks that do not register may answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar, cast

from quire.api.errors import PluginError
from quire.api.extensions import CheckpointReader, ConfigProblem, EngineObserver

T = TypeVar("T")

_READER_METHODS = ("names", "shape", "read", "metadata")


def path_or_none(value: object) -> Path | None:
    """The answer of `quire_resolve_model`."""
    if value is None or isinstance(value, Path):
        return value
    raise PluginError(f"returned {value!r}, expected a Path or None")


def reader_or_none(value: object) -> CheckpointReader | None:
    """The answer of `quire_open_checkpoint`."""
    missing = [name for name in _READER_METHODS if not callable(getattr(value, name, None))]
    if value is not None and missing:
        raise PluginError(f"returned {value!r}, expected a CheckpointReader or None: it lacks {missing[0]!r}")
    return cast("CheckpointReader | None", value)


def problems(value: object) -> list[ConfigProblem]:
    """The answer of `quire_check_config`."""
    return _listed(value, ConfigProblem)


def observers(value: object) -> list[EngineObserver]:
    """The answer of `quire_create_observers`."""
    return _listed(value, EngineObserver)


def nothing(value: object) -> None:
    """The answer of hooks that return nothing."""
    if value is not None:
        raise PluginError(f"returned {value!r}, expected nothing")


def _listed(value: object, kind: type[T]) -> list[T]:
    if not isinstance(value, list | tuple):
        raise PluginError(f"returned {value!r}, expected a list of {kind.__name__}")
    for entry in value:
        if not isinstance(entry, kind):
            raise PluginError(f"returned a list with {entry!r}, expected {kind.__name__}")
    return list(value)


CHECKS: Final[Mapping[str, Callable[[object], object]]] = MappingProxyType(
    {
        "quire_resolve_model": path_or_none,
        "quire_open_checkpoint": reader_or_none,
        "quire_check_config": problems,
        "quire_prepare_model": nothing,
        "quire_create_observers": observers,
        "quire_engine_started": nothing,
        "quire_engine_stopping": nothing,
    }
)
"""By hook, what turns its answer into the host's, or raises PluginError."""
