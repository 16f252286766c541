"""Plugins of hook API 1.0 in a host of a made-up 1.2, through adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from quire.api import hookspecs
from quire.api.errors import PluginError
from quire.api.hookspecs import hookimpl, hookspec
from quire.api.specs import ModelSpec, PluginInfo
from quire.plugins import HookAdapter, HookApi, PluginHost

Plugin = Callable[..., ModuleType]
HostOf = Callable[..., PluginHost]


@dataclass(slots=True, frozen=True)
class Named:
    """What a model's name became in the made-up 1.2."""

    text: str


class NewSpecs:
    """Hook API 1.2: quire_resolve_model gained an argument, and its name is no string any more."""

    quire_plugin_info = staticmethod(hookspecs.quire_plugin_info)
    for _name in hookspecs.HOOKS:
        vars()[_name] = staticmethod(getattr(hookspecs, _name))
    del _name

    @staticmethod
    @hookspec(firstresult=True)
    def quire_resolve_model(name: Named, revision: str) -> object:
        """As in 1.0, with a revision."""


def old_name(arguments: Mapping[str, object]) -> Mapping[str, object]:
    name = arguments["name"]
    assert isinstance(name, Named)
    return {**arguments, "name": name.text}


def longer(answer: object) -> object:
    return answer / "from-1.1" if isinstance(answer, Path) else answer


def wrapped(arguments: Mapping[str, object]) -> Mapping[str, object]:
    return {**arguments, "name": Named(str(arguments["name"]))}


def doubled(answer: object) -> object:
    assert isinstance(answer, list)
    return [*answer, *(ModelSpec(f"{spec.architecture}2", spec.factory) for spec in answer)]


NEW = HookApi(
    version=(1, 2),
    specs=NewSpecs,
    adapters={
        ("quire_resolve_model", (1, 0)): HookAdapter(arguments=old_name),
        ("quire_resolve_model", (1, 1)): HookAdapter(arguments=wrapped, answer=longer),
        ("quire_register_models", (1, 0)): HookAdapter(answer=doubled),
    },
)


def test_an_old_plugin_goes_on_working(plugin: Plugin, host_of: HostOf) -> None:
    seen: list[object] = []
    old = plugin(
        "old",
        info=PluginInfo(api=">=1,<2"),
        resolve_model=lambda name: seen.append(name) or Path("/models"),
        register_models=lambda: [ModelSpec("A", "a:b")],
    )
    host = host_of(old, api=NEW)
    # 1.2 to 1.1 makes a Named of the host's string, 1.1 to 1.0 takes it back; the answer goes up the steps.
    assert host.resolve_model("tiny") == Path("/models/from-1.1")
    assert seen == ["tiny"]
    assert list(host.models) == ["A", "A2"]


def test_a_plugin_of_the_minor_between_takes_the_later_steps_only(plugin: Plugin, host_of: HostOf) -> None:
    seen: list[object] = []
    middle = plugin(
        "middle",
        info=PluginInfo(api=">=1.1,<2"),
        resolve_model=lambda name: seen.append(name) or Path("/m"),
        register_models=lambda: [ModelSpec("A", "a:b")],
    )
    host = host_of(middle, api=NEW)
    assert host.resolve_model("tiny") == Path("/m/from-1.1")
    assert seen == [Named("tiny")]
    assert list(host.models) == ["A"]


def test_a_plugin_of_today_is_not_adapted(plugin: Plugin, host_of: HostOf) -> None:
    new = plugin(
        "new",
        info=PluginInfo(api=">=1.2,<2"),
        resolve_model=lambda name: Path("/m") if name == "tiny" else None,
        register_models=lambda: [ModelSpec("A", "a:b")],
    )
    host = host_of(new, api=NEW)
    assert host.resolve_model("tiny") == Path("/m")
    assert list(host.models) == ["A"]


def test_this_versions_hooks_need_no_adapter(plugin: Plugin, host_of: HostOf) -> None:
    """An argument that is left out, or has a default, is no obstacle."""

    def takes_a_default(name: str, options: object = "unset", new: str = "of its own") -> Path:
        return Path(f"/{name}/{options}/{new}")

    without = plugin("without", resolve_model=lambda: None)
    defaults = plugin("defaults", resolve_model=takes_a_default)
    assert host_of(without, defaults).resolve_model("x") == Path("/x/None/of its own")


@pytest.mark.parametrize(
    ("api", "oldest"), [(">=1,<2", (1, 0)), (">=1.1", (1, 1)), ("==1.2", (1, 2)), (">1.0", (1, 1))]
)
def test_a_range_says_what_a_plugin_was_written_for(api: str, oldest: tuple[int, int]) -> None:
    assert NEW.written_for(api) == oldest


@pytest.mark.parametrize("api", [">=1.3,<2", ">=2", "<1.2", "==1.0"])
def test_a_range_without_this_version_is_refused_with_both(api: str, plugin: Plugin, host_of: HostOf) -> None:
    with pytest.raises(PluginError) as caught:
        host_of(plugin("p", info=PluginInfo(api=api)), api=NEW)
    assert f"written for hook API {api}, this Quire has 1.2" in str(caught.value)


def test_a_hook_of_a_later_version_is_named_unless_it_is_marked_optional(
    plugin: Plugin, host_of: HostOf
) -> None:
    later = plugin("later", register_grammars=lambda: [])
    with pytest.raises(PluginError, match=r"unknown hook 'quire_register_grammars': did you mean"):
        host_of(later)
    later.quire_register_grammars = hookimpl(lambda: [], optionalhook=True)
    assert host_of(later).record("later").is_enabled


@pytest.mark.parametrize("mark", ["wrapper", "hookwrapper", "tryfirst", "trylast"])
def test_pluggys_own_order_is_refused(plugin: Plugin, host_of: HostOf, mark: str) -> None:
    def answer() -> object:
        return (yield)

    wrapping = plugin("p")
    wrapping.quire_register_models = hookimpl(answer, **{mark: True})  # type: ignore[call-overload]  # a mark by name
    with pytest.raises(PluginError, match=f"{mark}=True.*PluginInfo.before"):
        host_of(wrapping)
