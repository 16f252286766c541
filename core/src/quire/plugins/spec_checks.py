"""The fields of what plugins return: dataclasses check no types, and a string passes for a tuple of names."""

from __future__ import annotations

from typing import get_args

from quire.api.batch import DTypeName
from quire.api.errors import PluginError
from quire.api.specs import (
    AttentionBackendSpec,
    Capabilities,
    OpImplSpec,
    Placement,
    PluginInfo,
    RouteSpec,
    StepCaptureSpec,
)

_TUPLES_OF_SPECS = ("quant_methods", "aliases", "methods", "kv_cache_dtypes")
_FLAGS_OF_CAPABILITIES = ("tensor_parallel", "sliding_windows", "drafts", "prefix_caching", "chunked_prefill")
_TEXTS_OF_SPECS = ("help", "op", "schema")


def check_info(info: PluginInfo) -> None:
    """Refuse a PluginInfo whose fields have wrong types.

    Raises:
        PluginError: names the field and its value.
    """
    for field in ("before", "after", "runs_in"):
        _check_names(f"PluginInfo.{field}", getattr(info, field))
    if not isinstance(info.description, str):
        raise PluginError(f"PluginInfo.description is {info.description!r}, expected a text")
    unknown = [place for place in info.runs_in if place not in get_args(Placement)]
    if unknown:
        raise PluginError(f"PluginInfo.runs_in has {unknown[0]!r}, expected {', '.join(get_args(Placement))}")
    if info.affects_outputs not in (None, True, False):
        raise PluginError(f"PluginInfo.affects_outputs is {info.affects_outputs!r}, expected a bool or None")


def check_spec(spec: object, name: object) -> None:
    """Refuse a spec without a usable name, or whose fields have wrong types.

    Args:
        spec: any of `quire.api.specs`.
        name: what it is registered under.

    Raises:
        PluginError: names the spec, the field and its value.
    """
    kind = type(spec).__name__
    if not isinstance(name, str) or not name:
        raise PluginError(f"a {kind} is called {name!r}, expected a name")
    for field in ("factory", "reference"):
        factory = getattr(spec, field, "")
        if not (isinstance(factory, str) or callable(factory)):
            raise PluginError(
                f"{kind} {name!r}: {field} is {factory!r}, expected 'module:attribute' or a callable"
            )
    supports = getattr(spec, "supports", None)
    asks = isinstance(spec, OpImplSpec | AttentionBackendSpec | StepCaptureSpec)
    if not (callable(supports) or (supports is None and not asks)):
        raise PluginError(f"{kind} {name!r}: supports is no function")
    for field in _TUPLES_OF_SPECS:
        _check_names(f"{kind} {name!r}: {field}", getattr(spec, field, ()))
    _check_plain_fields(f"{kind} {name!r}", spec)
    if isinstance(spec, RouteSpec) and not (spec.path.startswith("/") and spec.methods):
        raise PluginError(f"{kind} {name!r}: a route needs a path that begins with / and a method")
    able = getattr(spec, "capabilities", Capabilities())
    if not isinstance(able, Capabilities):
        raise PluginError(f"{kind} {name!r}: capabilities is {able!r}, expected a Capabilities")
    _check_capabilities(f"{kind} {name!r}: Capabilities", able)


def _check_plain_fields(place: str, spec: object) -> None:
    for field in _TEXTS_OF_SPECS:
        text = getattr(spec, field, "")
        if not isinstance(text, str):
            raise PluginError(f"{place}: {field} is {text!r}, expected a text")
    priority = getattr(spec, "priority", 0)
    if not isinstance(priority, int):
        raise PluginError(f"{place}: priority is {priority!r}, expected an integer")
    _check_flag(f"{place}: is_always_on", getattr(spec, "is_always_on", False))


def _check_capabilities(place: str, able: Capabilities) -> None:
    for field in ("dtypes", "devices", "quantizations"):
        value = getattr(able, field)
        if value is not None:
            _check_names(f"{place}.{field}", value)
    unknown = [dtype for dtype in able.dtypes or () if dtype not in get_args(DTypeName)]
    if unknown:
        raise PluginError(f"{place}.dtypes has {unknown[0]!r}, expected {', '.join(get_args(DTypeName))}")
    for field in _FLAGS_OF_CAPABILITIES:
        _check_flag(f"{place}.{field}", getattr(able, field))


def _check_flag(place: str, value: object) -> None:
    if not isinstance(value, bool):
        raise PluginError(f"{place} is {value!r}, expected a bool")


def _check_names(place: str, value: object) -> None:
    if not isinstance(value, list | tuple) or not all(isinstance(entry, str) for entry in value):
        raise PluginError(f"{place} is {value!r}, expected a tuple of names")
