"""What a plugin registers: calling its hooks, checking their answers, naming each spec."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import pluggy

from quire.api.errors import PluginError
from quire.api.specs import (
    AttentionBackendSpec,
    CommandSpec,
    ModelSpec,
    OpImplSpec,
    OpSpec,
    PluginInfo,
    Registration,
)
from quire.plugins.discovery import Candidate
from quire.plugins.record import NamedRegistration

REGISTER_HOOKS: Mapping[str, tuple[type, ...]] = {
    "quire_register_models": (ModelSpec,),
    "quire_register_ops": (OpSpec, OpImplSpec),
    "quire_register_attention_backends": (AttentionBackendSpec,),
    "quire_register_commands": (CommandSpec,),
}
"""The hooks that register, in the order in which they are called, and what each may return."""


@dataclass(slots=True, frozen=True)
class SpecKind:
    """How a kind of spec is called and what is unique in it."""

    kind: str
    key: Callable[[object], str]


SPEC_KINDS: Mapping[type, SpecKind] = {
    ModelSpec: SpecKind("architecture", lambda spec: cast(ModelSpec, spec).architecture),
    OpSpec: SpecKind("op", lambda spec: cast(OpSpec, spec).name),
    OpImplSpec: SpecKind(
        "op implementation", lambda spec: f"{cast(OpImplSpec, spec).op}/{cast(OpImplSpec, spec).name}"
    ),
    AttentionBackendSpec: SpecKind("attention backend", lambda spec: cast(AttentionBackendSpec, spec).name),
    CommandSpec: SpecKind("command", lambda spec: cast(CommandSpec, spec).name),
}


def implementations(hook: pluggy.HookCaller, plugin: object | None = None) -> list[pluggy.HookImpl]:
    """A hook's implementations in pluggy's calling order; those of one plugin if it is given."""
    impls = [impl for impl in hook.get_hookimpls() if not (impl.wrapper or impl.hookwrapper)]
    return [impl for impl in reversed(impls) if plugin is None or impl.plugin is plugin]


def read_info(manager: pluggy.PluginManager, plugin: object) -> PluginInfo:
    """What the plugin says of itself; PluginError when it does not."""
    impls = implementations(manager.hook.quire_plugin_info, plugin)
    if not impls:
        raise PluginError("it does not implement quire_plugin_info: return PluginInfo(api='>=1,<2') from it")
    info = impls[0].function()
    if not isinstance(info, PluginInfo):
        raise PluginError(f"quire_plugin_info returned {info!r}, expected a PluginInfo")
    return info


def collect(manager: pluggy.PluginManager, plugin: object, candidate: Candidate) -> list[NamedRegistration]:
    """Call the plugin's register hooks and name what they return.

    Raises:
        PluginError: a hook returned something else than a list of its specs.
    """
    found: list[NamedRegistration] = []
    for hook_name, types in REGISTER_HOOKS.items():
        for impl in implementations(getattr(manager.hook, hook_name), plugin):
            for spec in _checked(hook_name, impl.function(), types):
                kind = SPEC_KINDS[type(spec)]
                entry = Registration(spec, candidate.name, candidate.distribution, candidate.version)
                found.append(NamedRegistration(kind.kind, kind.key(spec), entry))
    return found


def unmarked_hooks(manager: pluggy.PluginManager, plugin: object) -> Iterator[str]:
    """Functions that are called like a hook and lack `@hookimpl`: they would be ignored silently."""
    for name in dir(plugin):
        if not name.startswith("quire_") or manager.parse_hookimpl_opts(plugin, name) is not None:
            continue
        if hasattr(manager.hook, name) and callable(getattr(plugin, name)):
            yield name


def _checked(hook_name: str, value: object, types: tuple[type, ...]) -> list[object]:
    expected = " or ".join(kind.__name__ for kind in types)
    if not isinstance(value, list | tuple):
        raise PluginError(f"{hook_name} returned {value!r}, expected a list of {expected}")
    for spec in value:
        if type(spec) not in types:
            raise PluginError(f"{hook_name} returned a list with {spec!r}, expected {expected}")
    return list(value)
