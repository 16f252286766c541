"""What a plugin registers: calling its hooks, checking their answers, naming each spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import cast

import pluggy

from quire.api.errors import PluginError
from quire.api.specs import (
    AttentionBackendSpec,
    CommandSpec,
    DrafterSpec,
    ExecutorSpec,
    LogitsProcessorSpec,
    ModelSpec,
    OpImplSpec,
    OpSpec,
    PluginInfo,
    PolicySpec,
    QuantizationSpec,
    ReasoningParserSpec,
    Registration,
    RouteSpec,
    StepCaptureSpec,
    ToolParserSpec,
)
from quire.plugins.caller import PluginCaller
from quire.plugins.calls import PluginCalls
from quire.plugins.discovery import Candidate
from quire.plugins.record import NamedRegistration
from quire.plugins.spec_checks import check_info, check_spec

REGISTER_HOOKS: Mapping[str, tuple[type, ...]] = {
    "quire_register_models": (ModelSpec,),
    "quire_register_quantizations": (QuantizationSpec,),
    "quire_register_drafters": (DrafterSpec,),
    "quire_register_attention_backends": (AttentionBackendSpec,),
    "quire_register_step_captures": (StepCaptureSpec,),
    "quire_register_ops": (OpSpec, OpImplSpec),
    "quire_register_policies": (PolicySpec,),
    "quire_register_logits_processors": (LogitsProcessorSpec,),
    "quire_register_executors": (ExecutorSpec,),
    "quire_register_routes": (RouteSpec,),
    "quire_register_tool_parsers": (ToolParserSpec,),
    "quire_register_reasoning_parsers": (ReasoningParserSpec,),
    "quire_register_commands": (CommandSpec,),
}
"""The hooks that register, in the order in which they are called, and what each may return."""


@dataclass(slots=True, frozen=True)
class SpecKind:
    """How a kind of spec is called and what is unique in it.

    Attributes:
        is_per_plugin: unique within a plugin only; names of the kind begin with the plugin's.
    """

    kind: str
    key: Callable[[object], str]
    is_per_plugin: bool = False

    def name_of(self, spec: object, plugin: str) -> str:
        """What a plugin's spec is registered under."""
        key = self.key(spec)
        return f"{plugin}{key}" if self.is_per_plugin else key


_BY_NAME = attrgetter("name")

SPEC_KINDS: Mapping[type, SpecKind] = {
    ModelSpec: SpecKind("architecture", attrgetter("architecture")),
    QuantizationSpec: SpecKind("quantization", _BY_NAME),
    DrafterSpec: SpecKind("drafter", _BY_NAME),
    OpSpec: SpecKind("op", _BY_NAME),
    OpImplSpec: SpecKind(
        "op implementation", lambda spec: f"{cast(OpImplSpec, spec).op}/{cast(OpImplSpec, spec).name}"
    ),
    AttentionBackendSpec: SpecKind("attention backend", _BY_NAME),
    StepCaptureSpec: SpecKind("step capture", _BY_NAME),
    PolicySpec: SpecKind("policy", _BY_NAME),
    LogitsProcessorSpec: SpecKind("logits processor", _BY_NAME),
    ExecutorSpec: SpecKind("executor", _BY_NAME),
    RouteSpec: SpecKind("route", attrgetter("path"), is_per_plugin=True),
    ToolParserSpec: SpecKind("tool parser", _BY_NAME),
    ReasoningParserSpec: SpecKind("reasoning parser", _BY_NAME),
    CommandSpec: SpecKind("command", _BY_NAME),
}


def implementations(hook: pluggy.HookCaller, plugin: object) -> list[pluggy.HookImpl]:
    """A plugin's implementations of a hook; more than one only where it uses `specname`."""
    return [impl for impl in hook.get_hookimpls() if impl.plugin is plugin]


def read_info(manager: pluggy.PluginManager, plugin: object, name: str, calls: PluginCalls) -> PluginInfo:
    """What the plugin says of itself; PluginError when it does not."""
    impls = implementations(manager.hook.quire_plugin_info, plugin)
    if not impls:
        raise PluginError("it does not implement quire_plugin_info: return PluginInfo(api='>=1,<2') from it")

    def read() -> PluginInfo:
        info = impls[0].function()
        if not isinstance(info, PluginInfo):
            raise PluginError(f"quire_plugin_info returned {info!r}, expected a PluginInfo")
        check_info(info)
        return info

    return calls.call(name, "quire_plugin_info", read)


def collect(
    caller: PluginCaller, manager: pluggy.PluginManager, plugin: object, candidate: Candidate
) -> list[NamedRegistration]:
    """Call the plugin's register hooks and name what they return.

    Raises:
        PluginError: a hook returned something else than a list of its specs.
    """
    found: list[NamedRegistration] = []
    for hook_name, types in REGISTER_HOOKS.items():
        for impl in implementations(getattr(manager.hook, hook_name), plugin):
            for spec in caller.call(hook_name, impl, partial(_checked, hook_name, types=types)):
                kind = SPEC_KINDS[type(spec)]
                check_spec(spec, kind.key(spec))
                entry = Registration(spec, candidate.name, candidate.distribution, candidate.version)
                found.append(NamedRegistration(kind.kind, kind.name_of(spec, candidate.name), entry))
    return found


def _checked(hook_name: str, value: object, *, types: tuple[type, ...]) -> list[object]:
    expected = " or ".join(kind.__name__ for kind in types)
    if not isinstance(value, list | tuple):
        raise PluginError(f"{hook_name} returned {value!r}, expected a list of {expected}")
    for spec in value:
        if type(spec) not in types:
            raise PluginError(f"{hook_name} returned a list with {spec!r}, expected {expected}")
    return list(value)
