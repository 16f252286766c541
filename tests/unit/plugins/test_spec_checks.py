"""Fields of wrong types in what plugins return: each is refused with its name and value."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from quire.api.errors import PluginError
from quire.api.specs import (
    AttentionBackendSpec,
    Capabilities,
    CommandSpec,
    LogitsProcessorSpec,
    ModelSpec,
    OpImplSpec,
    PluginInfo,
    QuantizationSpec,
    RouteSpec,
    StepCaptureSpec,
)
from quire.plugins import PluginHost

Plugin = Callable[..., ModuleType]
HostOf = Callable[..., PluginHost]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"before": "other"}, "PluginInfo.before is 'other', expected a tuple of names"),
        ({"after": (3,)}, r"PluginInfo.after is \(3,\)"),
        ({"runs_in": ("kitchen",)}, "runs_in has 'kitchen', expected frontend, engine, worker"),
        ({"affects_outputs": "no"}, "affects_outputs is 'no'"),
        ({"description": 5}, "PluginInfo.description is 5, expected a text"),
        ({"api": 1}, "not a version range"),
    ],
)
def test_infos(plugin: Plugin, host_of: HostOf, fields: dict[str, object], message: str) -> None:
    info = PluginInfo(**{"api": ">=1", **fields})  # type: ignore[arg-type]  # fields by name
    with pytest.raises(PluginError, match=message):
        host_of(plugin("p", info=info))


@pytest.mark.parametrize(
    ("hook", "spec", "message"),
    [
        ("models", ModelSpec("", "a:b"), "a ModelSpec is called '', expected a name"),
        ("models", ModelSpec(3, "a:b"), "a ModelSpec is called 3"),  # type: ignore[arg-type]  # wrong on purpose
        ("models", ModelSpec("X", 3), "ModelSpec 'X': factory is 3"),  # type: ignore[arg-type]  # wrong on purpose
        ("models", ModelSpec("X", "a:b", None), "capabilities is None"),  # type: ignore[arg-type]  # wrong on purpose
        (
            "models",
            ModelSpec("X", "a:b", Capabilities(dtypes="float32")),  # type: ignore[arg-type]  # wrong on purpose
            "Capabilities.dtypes is 'float32', expected a tuple of names",
        ),
        (
            "models",
            ModelSpec("X", "a:b", Capabilities(dtypes=("flaot16",))),  # type: ignore[arg-type]  # wrong on purpose
            "Capabilities.dtypes has 'flaot16', expected .*float16",
        ),
        (
            "models",
            ModelSpec("X", "a:b", Capabilities(drafts="no")),  # type: ignore[arg-type]  # wrong on purpose
            "Capabilities.drafts is 'no', expected a bool",
        ),
        # for mypy: wrong on purpose
        ("commands", CommandSpec("c", None, "a:b"), "CommandSpec 'c': help is None, expected a text"),  # type: ignore[arg-type]
        # for mypy: wrong on purpose
        ("ops", OpImplSpec("o", "i", "a:b", print, priority="9"), "priority is '9', expected an integer"),  # type: ignore[arg-type]
        (
            "logits_processors",
            LogitsProcessorSpec("l", "a:b", is_always_on="no"),  # type: ignore[arg-type]  # wrong on purpose
            "is_always_on is 'no', expected a bool",
        ),
        # for mypy: wrong on purpose
        ("quantizations", QuantizationSpec("q", "a:b", quant_methods="awq"), "quant_methods is 'awq'"),  # type: ignore[arg-type]
        ("routes", RouteSpec("/x", "a:b", methods="POST"), "methods is 'POST'"),  # type: ignore[arg-type]  # wrong on purpose
        ("routes", RouteSpec("x", "a:b"), "'x': a route needs a path that begins with /"),
        ("routes", RouteSpec("/x", "a:b", methods=()), "'/x': a route needs .* a method"),
        # for mypy: wrong on purpose
        ("step_captures", StepCaptureSpec("a", "a:b", None), "supports is no function"),  # type: ignore[arg-type]
        # for mypy: wrong on purpose
        ("attention_backends", AttentionBackendSpec("a", "a:b", None), "supports is no function"),  # type: ignore[arg-type]
    ],
)
def test_specs(plugin: Plugin, host_of: HostOf, hook: str, spec: object, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        host_of(plugin("p", **{f"register_{hook}": lambda: [spec]}))
