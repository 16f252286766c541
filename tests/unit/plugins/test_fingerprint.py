"""What changes the fingerprint: whatever can change logits or KV, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

from quire.api.config import PluginSettings
from quire.api.specs import CommandSpec, DrafterSpec, LogitsProcessorSpec, ModelSpec, PluginInfo
from quire.plugins import Discovery, PluginHost
from quire.plugins.fingerprint import affects_outputs

MakePlugin = Callable[..., Path]
Found = Callable[[], Discovery]
Plugin = Callable[..., ModuleType]
HostOf = Callable[..., PluginHost]


class Options(BaseModel):
    """An option that a logits processor would read."""

    bias: float = 0.0
    unset: Path | None = None


def processor(plugin: Plugin, name: str = "p") -> ModuleType:
    info = PluginInfo(api=">=1", options=Options)
    return plugin(name, info=info, register_logits_processors=lambda: [LogitsProcessorSpec(name, "a:b")])


def test_it_is_a_digest_and_repeats_itself(plugin: Plugin, host_of: HostOf) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", host_of().fingerprint())
    assert host_of(processor(plugin)).fingerprint() == host_of(processor(plugin)).fingerprint()


def test_a_plugin_that_can_touch_logits_changes_it(plugin: Plugin, host_of: HostOf) -> None:
    assert host_of(processor(plugin)).fingerprint() != host_of().fingerprint()


def test_options_change_it_and_defaults_said_aloud_do_not(plugin: Plugin, host_of: HostOf) -> None:
    plain = host_of(processor(plugin)).fingerprint()
    assert host_of(processor(plugin), options={"p": {"bias": 1.0}}).fingerprint() != plain
    assert host_of(processor(plugin), options={"p": {"bias": 0.0}}).fingerprint() == plain


def test_the_version_changes_it(make_plugin: MakePlugin, found: Found, tmp_path: Path) -> None:
    body = "@hookimpl\ndef quire_register_models():\n    return [ModelSpec('X', 'a:b')]"
    metadata = make_plugin("foo", body, version="1.0")
    first = PluginHost.discover(discovery=found()).fingerprint()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: quire-foo\nVersion: 1.1\n")
    assert PluginHost.discover(discovery=found()).fingerprint() != first


def test_observers_commands_and_drafters_do_not_change_it(plugin: Plugin, host_of: HostOf) -> None:
    harmless = plugin(
        "p",
        create_observers=lambda: [],
        register_commands=lambda: [CommandSpec("x", "help", "a:b")],
        register_drafters=lambda: [DrafterSpec("d", "a:b")],
    )
    assert host_of(harmless).fingerprint() == host_of().fingerprint()


@pytest.mark.parametrize("hook", ["prepare_model", "open_checkpoint"])
def test_hooks_that_can_change_weights_count(plugin: Plugin, host_of: HostOf, hook: str) -> None:
    host = host_of(plugin("p", **{hook: lambda: None}))
    assert affects_outputs(host.record("p"))
    assert host.fingerprint() != host_of().fingerprint()


def test_a_plugins_own_word_wins(plugin: Plugin, host_of: HostOf) -> None:
    silent = plugin("p", info=PluginInfo(api=">=1", affects_outputs=False), prepare_model=lambda: None)
    loud = plugin("p", info=PluginInfo(api=">=1", affects_outputs=True))
    assert host_of(silent).fingerprint() == host_of().fingerprint()
    assert host_of(loud).fingerprint() != host_of().fingerprint()


def test_who_serves_a_name_changes_it(plugin: Plugin, host_of: HostOf) -> None:
    both = [plugin(name, register_models=lambda: [ModelSpec("X", "a:b")]) for name in ("a", "b")]
    prints = {host_of(*both, prefer={"architecture:X": preferred}).fingerprint() for preferred in ("a", "b")}
    assert len(prints) == 2


def test_a_plugin_that_is_switched_off_does_not_count(plugin: Plugin, host_of: HostOf) -> None:
    host = host_of(processor(plugin, "p"), processor(plugin, "q"))
    assert host.fingerprint(without=["q"]) == host_of(processor(plugin, "p")).fingerprint()


def test_denied_plugins_do_not_count(make_plugin: MakePlugin, found: Found) -> None:
    empty = PluginHost.discover(discovery=found()).fingerprint()
    make_plugin("foo", "@hookimpl\ndef quire_prepare_model():\n    pass")
    denied = PluginHost.discover(PluginSettings(deny=("foo",)), discovery=found())
    assert denied.fingerprint() == empty
