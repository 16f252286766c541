"""The plugin host: selection, loading, collisions, failures."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path

import pytest

from quire.api.config import PluginSettings
from quire.api.errors import PluginError
from quire.api.hookspecs import hookimpl
from quire.api.specs import CommandSpec, ModelSpec, PluginInfo
from quire.plugins import Discovery, PluginHost, PluginStatus

MakePlugin = Callable[..., Path]
Found = Callable[[], Discovery]

MODEL = """
@hookimpl
def quire_register_models():
    return [ModelSpec("FooForCausalLM", "foo.model:Foo")]
"""


def load(found: Found, *, strict: bool = True, **settings: object) -> PluginHost:
    return PluginHost.discover(PluginSettings(**settings), strict=strict, discovery=found())


def test_an_installed_plugin_is_found_loaded_and_named(make_plugin: MakePlugin, found: Found) -> None:
    make_plugin("foo", MODEL)
    host = load(found)
    registration = host.models.registration("FooForCausalLM")
    assert (registration.plugin, registration.distribution, registration.version) == (
        "foo",
        "quire-foo",
        "1.2",
    )
    assert host.models.spec("FooForCausalLM").factory == "foo.model:Foo"
    assert host.record("foo").registered_names() == {"architecture": ["FooForCausalLM"]}
    assert [record.name for record in host.records] == ["core", "foo"]
    assert "quire-foo 1.2: foo" in host.summary()


def test_core_registers_its_commands_through_the_same_hook(found: Found) -> None:
    host = load(found)
    assert {"generate", "plugins", "collect-env", "completion"} <= set(host.commands)
    assert host.commands.registration("generate").plugin == "core"


@pytest.mark.parametrize(
    ("settings", "status", "reason"),
    [
        ({}, PluginStatus.ENABLED, ""),
        ({"deny": ("foo",)}, PluginStatus.DISABLED, "denied"),
        ({"allow": ("foo",), "deny": ("foo",)}, PluginStatus.DISABLED, "denied"),
        ({"allow": ("foo",)}, PluginStatus.ENABLED, ""),
        ({"allow": ("bar",)}, PluginStatus.DISABLED, "not named"),
        ({"autoload": False}, PluginStatus.DISABLED, "autoload is off"),
        ({"autoload": False, "allow": ("foo",)}, PluginStatus.ENABLED, ""),
    ],
)
def test_settings_decide(
    make_plugin: MakePlugin,
    found: Found,
    settings: dict[str, object],
    status: PluginStatus,
    reason: str,
) -> None:
    make_plugin("foo", MODEL)
    make_plugin("bar")
    host = load(found, **settings)
    record = host.record("foo")
    assert record.status is status
    assert reason in record.reason
    assert ("FooForCausalLM" in host.models) is (status is PluginStatus.ENABLED)


def test_a_disabled_plugin_is_not_imported(make_plugin: MakePlugin, found: Found) -> None:
    make_plugin("foo", "raise RuntimeError('imported')")
    assert not load(found, deny=("foo",)).record("foo").is_enabled


def test_an_allowed_plugin_must_be_installed(make_plugin: MakePlugin, found: Found) -> None:
    make_plugin("llama")
    with pytest.raises(PluginError, match=r"'lama' is not installed: did you mean 'llama'"):
        load(found, allow=("lama",))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (MODEL, "architecture 'FooForCausalLM'"),
        (
            "@hookimpl\ndef quire_register_ops():\n"
            "    return [OpSpec('norm', '(Tensor x) -> Tensor', 'a:b')]",
            "op 'norm'",
        ),
        (
            "@hookimpl\ndef quire_register_ops():\n"
            "    return [OpImplSpec('norm', 'fast', 'a:b', lambda device, dtype: None)]",
            "op implementation 'norm/fast'",
        ),
        (
            "@hookimpl\ndef quire_register_attention_backends():\n"
            "    return [AttentionBackendSpec('flash', 'a:b', lambda device, dtype: None)]",
            "attention backend 'flash'",
        ),
        (
            "@hookimpl\ndef quire_register_commands():\n    return [CommandSpec('serve', 'x', 'a:b')]",
            "command 'serve'",
        ),
    ],
)
def test_a_collision_names_both_and_the_remedy(
    make_plugin: MakePlugin, found: Found, body: str, kind: str
) -> None:
    make_plugin("foo", body, version="1.0")
    make_plugin("goo", body, version="2.0")
    with pytest.raises(PluginError) as caught:
        load(found)
    message = str(caught.value)
    for part in (kind, "quire-foo 1.0", "quire-goo 2.0", "--no-plugin goo", "deny"):
        assert part in message
    assert load(found, deny=("goo",)).record("foo").is_enabled


def test_a_plugin_may_not_take_a_core_command(make_plugin: MakePlugin, found: Found) -> None:
    make_plugin(
        "foo", "@hookimpl\ndef quire_register_commands():\n    return [CommandSpec('generate', 'x', 'a:b')]"
    )
    with pytest.raises(PluginError, match=r"'generate' is registered by plugin 'core'"):
        load(found)


def test_one_name_from_two_distributions(make_plugin: MakePlugin, found: Found) -> None:
    make_plugin("foo", distribution="first")
    make_plugin("foo", distribution="second")
    with pytest.raises(PluginError, match=r"first 1\.2 and second 1\.2"):
        load(found)
    host = load(found, strict=False)
    assert [record.status for record in host.records[1:]] == [PluginStatus.FAILED] * 2
    assert load(found, deny=("foo",)).records[1].status is PluginStatus.DISABLED


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("1 / 0", "ZeroDivisionError"),
        ("@hookimpl\ndef quire_register_models():\n    raise OSError('no disk')", "OSError: no disk"),
        (
            "@hookimpl\ndef quire_register_models():\n    return None",
            "returned None, expected a list of ModelSpec",
        ),
        ("@hookimpl\ndef quire_register_models():\n    return ['x']", "a list with 'x', expected ModelSpec"),
        ("@hookimpl\ndef quire_regster_models():\n    return []", "unknown hook 'quire_regster_models'"),
        ("@hookimpl\ndef quire_resolve_model(nam):\n    return None", "nam"),
        ("def quire_register_models():\n    return []", "quire_register_models lacks the @hookimpl marker"),
        (
            "@hookimpl\ndef quire_register_models():\n"
            "    return [ModelSpec('A', 'a:b'), ModelSpec('A', 'a:b')]",
            "'A' twice",
        ),
    ],
)
def test_a_failure_names_plugin_distribution_version_and_cause(
    make_plugin: MakePlugin, found: Found, body: str, cause: str
) -> None:
    make_plugin("bad", body)
    make_plugin("good", MODEL)
    with pytest.raises(PluginError) as caught:
        load(found)
    for part in ("'bad'", "quire-bad 1.2", cause, "--no-plugin bad"):
        assert part in str(caught.value)
    host = load(found, strict=False)
    assert host.record("bad").status is PluginStatus.FAILED
    assert cause in host.record("bad").reason
    assert host.record("good").is_enabled


def test_a_failed_registration_is_rolled_back_whole(make_plugin: MakePlugin, found: Found) -> None:
    body = (
        MODEL
        + "\n@hookimpl\ndef quire_register_commands():\n    return [CommandSpec('generate', 'x', 'a:b')]"
    )
    make_plugin("bad", body)
    make_plugin("good", MODEL)
    host = load(found, strict=False)
    assert host.models.registration("FooForCausalLM").plugin == "good"
    assert host.record("bad").registered_names() == {}
    assert host.resolve_model("x") is None


@pytest.mark.parametrize(
    ("api", "cause"), [(">=2", "hook API >=2, this Quire has 1.5"), ("1", "not a version range")]
)
def test_the_hook_api_must_fit(make_plugin: MakePlugin, found: Found, api: str, cause: str) -> None:
    info = f"""
from quire.api.hookspecs import hookimpl
from quire.api.specs import PluginInfo

@hookimpl
def quire_plugin_info():
    return PluginInfo(api={api!r})
"""
    make_plugin("future", info=info)
    with pytest.raises(PluginError, match=cause):
        load(found)


def test_plugin_info_is_required(make_plugin: MakePlugin, found: Found) -> None:
    make_plugin("mute", info="")
    with pytest.raises(PluginError, match="does not implement quire_plugin_info"):
        load(found)


def test_stale_metadata_is_named_as_such(make_plugin: MakePlugin, found: Found, site: Path) -> None:
    make_plugin("gone", module="gone_module")
    (site / "gone_module.py").unlink()
    with pytest.raises(PluginError, match=r"'gone_module' does not exist.*stale.*quire-gone"):
        load(found)


class Resolver:
    """A plugin as an object, as a script or a test would pass it."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    @hookimpl
    def quire_plugin_info(self) -> PluginInfo:
        return PluginInfo(api="~=1.0")

    @hookimpl
    def quire_resolve_model(self, name: str) -> object:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer if name == "mine" else None


def test_resolve_model_takes_the_first_answer(found: Found, tmp_path: Path) -> None:
    host = PluginHost.discover(extra_plugins=[Resolver(tmp_path)], discovery=found())
    assert host.resolve_model("mine") == tmp_path
    assert host.resolve_model("other") is None
    assert host.records[-1].candidate.distribution == "given by the program"


@pytest.mark.parametrize("answer", ["a string", ValueError("no")])
def test_resolve_model_names_the_plugin_that_fails(found: Found, answer: object) -> None:
    host = PluginHost.discover(extra_plugins=[Resolver(answer)], discovery=found())
    with pytest.raises(PluginError, match="'Resolver'"):
        host.resolve_model("mine")


def test_a_module_made_in_a_script_is_a_plugin(found: Found) -> None:
    module = types.ModuleType("scripted")
    module.quire_plugin_info = hookimpl(lambda: PluginInfo(api=">=1"))  # type: ignore[attr-defined]  # a module made here
    module.quire_plugin_info.__name__ = "quire_plugin_info"  # type: ignore[attr-defined]  # a module made here

    @hookimpl
    def quire_register_models() -> list[ModelSpec]:
        return [ModelSpec("ScriptForCausalLM", dict)]

    module.quire_register_models = quire_register_models  # type: ignore[attr-defined]  # a module made here
    host = PluginHost.discover(extra_plugins=[module], discovery=found())
    assert host.models.registration("ScriptForCausalLM").plugin == "scripted"


def test_hosts_are_independent(make_plugin: MakePlugin, found: Found) -> None:
    make_plugin("foo", MODEL)
    first, second = load(found), load(found, deny=("foo",))
    assert "FooForCausalLM" in first.models
    assert "FooForCausalLM" not in second.models


def test_an_unknown_plugin_name_gets_a_hint(found: Found) -> None:
    with pytest.raises(PluginError, match="did you mean 'core'"):
        load(found).record("cor")


def test_commands_are_specs(found: Found) -> None:
    assert all(isinstance(spec, CommandSpec) for spec in load(found).commands.specs())


def test_a_record_says_where_a_plugin_comes_from_and_what_its_import_cost(
    make_plugin: MakePlugin, found: Found, site: Path
) -> None:
    make_plugin("foo", "import time\ntime.sleep(0.01)\n" + MODEL, module="foo_source")
    record = load(found).record("foo")
    assert record.source == str(site / "foo_source.py")
    assert record.import_s >= 0.01
    assert set(record.hooks) == {"quire_plugin_info", "quire_register_models"}
    assert load(found, deny=("foo",)).record("foo").source == ""


def test_denying_core_is_not_passed_over_in_silence() -> None:
    host = load(lambda: Discovery((), ()), deny=("core",))
    assert host.record("core").is_enabled
    assert any("plugins.deny has no effect on 'core'" in warning for warning in host.warnings)
