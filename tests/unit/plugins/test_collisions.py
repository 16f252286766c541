"""Two plugins that claim one name: named with distributions, versions and remedies; `prefer` settles it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from quire.api.config import PluginSettings
from quire.api.errors import ConfigError, PluginError
from quire.plugins import Discovery, PluginHost, PluginStatus
from quire.plugins.collect import REGISTER_HOOKS, SPEC_KINDS

MakePlugin = Callable[..., Path]
Found = Callable[[], Discovery]
Plugin = Callable[..., ModuleType]
HostOf = Callable[..., PluginHost]

CASES: dict[str, tuple[str, str, str]] = {
    "architecture": ("models", "ModelSpec('XForCausalLM', 'a:b')", "XForCausalLM"),
    "quantization": ("quantizations", "QuantizationSpec('x', 'a:b')", "x"),
    "drafter": ("drafters", "DrafterSpec('x', 'a:b')", "x"),
    "op": ("ops", "OpSpec('x', '(Tensor x) -> Tensor', 'a:b')", "x"),
    "op implementation": (
        "ops",
        "OpImplSpec('rms_norm', 'fast', 'a:b', lambda device, dtype: None)",
        "rms_norm/fast",
    ),
    "attention backend": (
        "attention_backends",
        "AttentionBackendSpec('x', 'a:b', lambda device, dtype: None)",
        "x",
    ),
    "step capture": (
        "step_captures",
        "StepCaptureSpec('x', 'a:b', lambda device, dtype: None)",
        "x",
    ),
    "policy": ("policies", "PolicySpec('x', 'a:b')", "x"),
    "logits processor": ("logits_processors", "LogitsProcessorSpec('x', 'a:b')", "x"),
    "executor": ("executors", "ExecutorSpec('x', 'a:b')", "x"),
    "tool parser": ("tool_parsers", "ToolParserSpec('x', 'a:b')", "x"),
    "reasoning parser": ("reasoning_parsers", "ReasoningParserSpec('x', 'a:b')", "x"),
    "command": ("commands", "CommandSpec('x', 'help', 'a:b')", "x"),
}


def body(kind: str) -> str:
    hook, spec, _ = CASES[kind]
    return f"@hookimpl\ndef quire_register_{hook}():\n    return [{spec}]\n"


def load(found: Found, *, strict: bool = True, **settings: object) -> PluginHost:
    return PluginHost.discover(PluginSettings.model_validate(settings), strict=strict, discovery=found())


def test_every_kind_has_a_case() -> None:
    assert {*CASES, "route"} == {entry.kind for entry in SPEC_KINDS.values()}
    assert set(SPEC_KINDS) == {kind for kinds in REGISTER_HOOKS.values() for kind in kinds}


@pytest.mark.parametrize("kind", CASES)
def test_a_collision_names_both_and_every_remedy(make_plugin: MakePlugin, found: Found, kind: str) -> None:
    make_plugin("foo", body(kind), version="1.0")
    make_plugin("goo", body(kind), version="2.0")
    with pytest.raises(PluginError) as caught:
        load(found)
    message = str(caught.value)
    name = CASES[kind][2]
    for part in (
        f"the {kind} {name!r}",
        "plugin 'foo' (quire-foo 1.0)",
        "plugin 'goo' (quire-goo 2.0)",
        f'prefer = {{"{kind}:{name}" = "goo"}}',
        "--no-plugin goo",
        "uninstall",
    ):
        assert part in message
    assert load(found, deny=["goo"]).record("foo").is_enabled


@pytest.mark.parametrize("preferred", ["foo", "goo"])
@pytest.mark.parametrize("kind", CASES)
def test_prefer_settles_it_and_the_loser_is_recorded(
    make_plugin: MakePlugin, found: Found, kind: str, preferred: str
) -> None:
    make_plugin("foo", body(kind))
    make_plugin("goo", body(kind))
    name = CASES[kind][2]
    host = load(found, prefer={f"{kind.replace(' ', '-')}:{name}": preferred})
    loser = {"foo": "goo", "goo": "foo"}[preferred]
    assert host.record(preferred).registered_names() == {kind: [name]}
    assert host.record(loser).registered_names() == {}
    (unused,) = host.record(loser).unused
    assert (unused.entry.kind, unused.entry.name) == (kind, name)
    assert unused.reason == f"not used: {preferred} is preferred"
    registry = host._registries[kind]
    assert registry.registration(name).plugin == preferred


def test_routes_have_their_plugins_prefix_and_do_not_collide(make_plugin: MakePlugin, found: Found) -> None:
    body = "@hookimpl\ndef quire_register_routes():\n    return [RouteSpec('/stats', 'a:b')]\n"
    make_plugin("foo", body)
    make_plugin("goo", body)
    host = load(found)
    assert list(host.routes) == ["foo/stats", "goo/stats"]
    assert [entry.plugin for entry in host.routes.registrations()] == ["foo", "goo"]
    make_plugin("twice", body.replace("[RouteSpec('/stats', 'a:b')]", "[RouteSpec('/stats', 'a:b')] * 2"))
    with pytest.raises(PluginError, match="registers the route 'twice/stats' twice"):
        load(found)


def test_a_plugin_can_be_preferred_to_core(make_plugin: MakePlugin, found: Found) -> None:
    make_plugin(
        "mine", "@hookimpl\ndef quire_register_commands():\n    return [CommandSpec('generate', 'x', 'a:b')]"
    )
    host = load(found, prefer={"command:generate": "mine"})
    assert host.commands.registration("generate").plugin == "mine"
    assert [entry.entry.name for entry in host.record("core").unused] == ["generate"]
    assert "plugins" in host.commands


def test_the_rest_of_the_loser_serves(make_plugin: MakePlugin, found: Found) -> None:
    make_plugin("foo", body("policy") + body("drafter"))
    make_plugin("goo", body("policy"))
    host = load(found, prefer={"policy:x": "goo"})
    assert host.drafters.registration("x").plugin == "foo"


def test_without_the_preferred_plugin_the_other_serves(make_plugin: MakePlugin, found: Found) -> None:
    make_plugin("foo", body("policy"))
    make_plugin("goo", body("policy"))
    host = load(found, prefer={"policy:x": "goo"}, deny=["goo"])
    assert host.policies.registration("x").plugin == "foo"
    assert "has no effect" in host.warnings[0]


@pytest.mark.parametrize(
    ("prefer", "message"),
    [
        ({"polcy:x": "foo"}, "did you mean 'policy'"),
        ({"policy": "foo"}, "write 'kind:name'"),
        ({"policy:x": "fooo"}, "no plugin is called 'fooo': did you mean 'foo'"),
        ({"policy:y": "foo"}, "plugin 'foo' registers no policy 'y'"),
    ],
)
def test_a_preference_that_says_nothing_is_an_error(
    make_plugin: MakePlugin, found: Found, prefer: dict[str, str], message: str
) -> None:
    make_plugin("foo", body("policy"))
    with pytest.raises(ConfigError, match=message):
        load(found, prefer=prefer)
    assert message.replace("'", "") in load(found, prefer=prefer, strict=False).warnings[0].replace("'", "")


@pytest.mark.parametrize("optional", ["foo", "goo"])
def test_of_two_that_collide_the_optional_one_goes(
    make_plugin: MakePlugin, found: Found, optional: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_plugin("foo", body("policy") + body("drafter"))
    make_plugin("goo", body("policy"))
    with caplog.at_level(logging.ERROR, "quire.plugins"):
        host = load(found, optional=[optional])
    assert not host.record(optional).is_enabled
    assert host.policies.registration("x").plugin == {"foo": "goo", "goo": "foo"}[optional]
    assert ("x" in host.drafters) is (optional == "goo")
    assert f"'{optional}'" in caplog.text


def test_of_two_optional_ones_the_later_goes(make_plugin: MakePlugin, found: Found) -> None:
    make_plugin("foo", body("policy"))
    make_plugin("goo", body("policy"))
    host = load(found, optional=["foo", "goo"])
    assert host.policies.registration("x").plugin == "foo"
    assert not host.record("goo").is_enabled


def test_three_claims_are_settled_one_by_one(make_plugin: MakePlugin, found: Found) -> None:
    for name in ("foo", "goo", "hoo"):
        make_plugin(name, body("policy"))
    host = load(found, strict=False)
    assert host.policies.registration("x").plugin == "foo"
    assert [host.record(name).status for name in ("goo", "hoo")] == [PluginStatus.FAILED] * 2
    assert load(found, prefer={"policy:x": "hoo"}).policies.registration("x").plugin == "hoo"


def test_one_name_from_two_distributions_is_settled_by_prefer(make_plugin: MakePlugin, found: Found) -> None:
    make_plugin("foo", body("policy"), distribution="first")
    make_plugin("foo", body("policy"), distribution="second")
    with pytest.raises(PluginError, match=r'first 1\.2 and second 1\.2.*"plugin:foo" = "first"'):
        load(found)
    with pytest.raises(ConfigError, match=r"secnd brings no plugin 'foo': did you mean 'second'"):
        load(found, prefer={"plugin:foo": "secnd"}, optional=["foo"])
    host = load(found, prefer={"plugin:foo": "Second"})
    assert host.policies.registration("x").distribution == "second"
    (loser,) = [record for record in host.records if not record.is_enabled]
    assert (loser.candidate.distribution, loser.reason) == ("first", "not used: second is preferred")


def test_a_renamed_plugins_stale_metadata_is_named(make_plugin: MakePlugin, found: Found) -> None:
    make_plugin("old", distribution="quire-old", module="same_module")
    make_plugin("renamed", distribution="quire-new", module="same_module", version="3.0")
    with pytest.raises(PluginError) as caught:
        load(found)
    for part in (
        "same_module",
        "plugin 'old' of quire-old 1.2",
        "'renamed' (quire-new 3.0)",
        "stale",
        "deny",
    ):
        assert part in str(caught.value)
    assert load(found, deny=["old"]).record("renamed").is_enabled


def test_a_plugin_of_the_program_may_not_take_an_installed_name(
    make_plugin: MakePlugin, found: Found, plugin: Plugin
) -> None:
    make_plugin("foo")
    with pytest.raises(PluginError, match=r"name is taken already by quire-foo 1\.2"):
        PluginHost.discover(extra_plugins=[plugin("foo")], discovery=found())
