"""Load order: by name, except where `before` and `after` ask otherwise; cycles are named whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from quire.api.config import PluginSettings
from quire.api.errors import ConfigError, PluginError
from quire.api.specs import PluginInfo
from quire.plugins import Discovery, PluginHost, PluginStatus
from quire.plugins.ordering import Constraint, find_cycle, sort_plugins

MakePlugin = Callable[..., Path]
Found = Callable[[], Discovery]
Plugin = Callable[..., ModuleType]
HostOf = Callable[..., PluginHost]


def ordered(plugin: Plugin, name: str, **order: tuple[str, ...]) -> ModuleType:
    return plugin(name, info=PluginInfo(api=">=1", **order))  # type: ignore[arg-type]  # fields by name


def test_without_wishes_the_order_is_by_name_core_first(make_plugin: MakePlugin, found: Found) -> None:
    for name in ("c", "a", "b"):
        make_plugin(name)
    host = PluginHost.discover(discovery=found())
    assert host.enabled_names() == ("core", "a", "b", "c")


def test_plugins_and_settings_ask_and_ties_stay_in_order(plugin: Plugin, host_of: HostOf) -> None:
    plugins = [
        ordered(plugin, "a", after=("c", "not-installed")),
        ordered(plugin, "b"),
        ordered(plugin, "c"),
        ordered(plugin, "d", before=("b",)),
    ]
    assert host_of(*plugins).enabled_names() == ("core", "c", "a", "d", "b")
    host = host_of(*plugins, order={"c": {"after": ["b"]}})
    assert host.enabled_names() == ("core", "d", "b", "c", "a")


def test_registration_follows_the_order(plugin: Plugin, host_of: HostOf) -> None:
    seen: list[str] = []
    one = plugin("one", register_models=lambda: seen.append("one") or [])
    two = plugin(
        "two", info=PluginInfo(api=">=1", before=("one",)), register_models=lambda: seen.append("two") or []
    )
    host_of(one, two)
    assert seen == ["two", "one"]


def test_the_order_does_not_depend_on_how_plugins_were_found(plugin: Plugin) -> None:
    constraints = [Constraint("c", "a", ""), Constraint("d", "b", ""), Constraint("a", "b", "")]
    names = ["a", "b", "c", "d"]
    for shuffled in itertools.permutations(constraints):
        assert sort_plugins(names, shuffled) == ["c", "a", "d", "b"]


def test_a_cycle_is_shown_whole_with_who_asks(plugin: Plugin, host_of: HostOf) -> None:
    plugins = [
        ordered(plugin, "a", before=("b",)),
        ordered(plugin, "b", before=("c",)),
        ordered(plugin, "c"),
        ordered(plugin, "free"),
    ]
    order = {"a": {"after": ["c"]}}
    with pytest.raises(PluginError) as caught:
        host_of(*plugins, order=order)
    message = str(caught.value)
    for part in ("a -> b -> c -> a", "a says before b", "b says before c", "[plugins.order.a] says after c"):
        assert part in message
    host = host_of(*plugins, order=order, strict=False)
    assert host.enabled_names() == ("core", "free")
    assert host.record("b").status is PluginStatus.FAILED


def test_an_optional_plugin_of_a_cycle_is_left_out_and_the_others_stay(
    plugin: Plugin, host_of: HostOf
) -> None:
    plugins = [ordered(plugin, "a", before=("b",)), ordered(plugin, "b", before=("a",))]
    host = host_of(*plugins, optional=["b"])
    assert host.enabled_names() == ("core", "a")
    assert "cycle" in host.record("b").reason


def test_a_plugin_cannot_wait_for_itself(plugin: Plugin, host_of: HostOf) -> None:
    with pytest.raises(PluginError, match="a -> a"):
        host_of(ordered(plugin, "a", after=("a",)))


def test_nothing_comes_before_core(plugin: Plugin, host_of: HostOf) -> None:
    with pytest.raises(PluginError, match="core is always the first"):
        host_of(ordered(plugin, "a", before=("core",)))


@pytest.mark.parametrize("order", [{"lama": {}}, {"llama": {"after": ["lama"]}}])
def test_an_unknown_name_in_the_settings_gets_a_hint(plugin: Plugin, host_of: HostOf, order: object) -> None:
    with pytest.raises(ConfigError, match=r"no plugin is called 'lama': did you mean 'llama'"):
        host_of(plugin("llama"), order=order)
    assert "lama" in host_of(plugin("llama"), order=order, strict=False).warnings[0]


def test_a_cycle_behind_a_tail_is_found() -> None:
    constraints = [Constraint("a", "b", ""), Constraint("b", "c", ""), Constraint("c", "b", "")]
    assert [entry.first for entry in find_cycle(["a", "b", "c"], constraints)] == ["b", "c"]
    assert find_cycle(["a", "b"], constraints[:1]) == []
    assert PluginSettings().order == {}
