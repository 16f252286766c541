"""`quire plugins list` shows what there is, failures included."""

from __future__ import annotations

import json

import pytest

from quire.api.config import PluginSettings
from quire.api.hookspecs import hookimpl
from quire.api.specs import ModelSpec, PluginInfo
from quire.cli.main import main
from quire.cli.plugins.listing import as_json, as_text
from quire.plugins import Candidate, Discovery, DiscoveryProblem, PluginHost


class Good:
    @hookimpl
    def quire_plugin_info(self) -> PluginInfo:
        return PluginInfo(api=">=1", description="a good one")

    @hookimpl
    def quire_register_models(self) -> list[ModelSpec]:
        return [ModelSpec("GoodForCausalLM", "a:b")]


@pytest.fixture
def host() -> PluginHost:
    discovery = Discovery(
        (
            Candidate("bad", "not_there_at_all", "bad-dist", "0.1"),
            Candidate("good", "", "good-dist", "2.0", plugin=Good()),
            Candidate("off", "never_imported", "off-dist", "1.0"),
        ),
        (DiscoveryProblem("old-dist", "/old", "shadowed"),),
    )
    return PluginHost.discover(PluginSettings(deny=("off",)), strict=False, discovery=discovery)


def test_text(host: PluginHost) -> None:
    lines = as_text(host).splitlines()
    assert lines[0].split() == ["PLUGIN", "DISTRIBUTION", "VERSION", "STATUS"]
    by_name = {line.split()[0]: line.split() for line in lines if not line.startswith(" ")}
    assert by_name["good"] == ["good", "good-dist", "2.0", "enabled"]
    assert by_name["bad"][-1] == "failed"
    assert by_name["off"][-1] == "disabled"
    assert "    architecture: GoodForCausalLM" in lines
    assert "    why: denied by plugins.deny" in lines
    assert any("stale" in line for line in lines)
    assert lines[-1] == "passed over: old-dist in /old: shadowed"


def test_json(host: PluginHost) -> None:
    document = json.loads(as_json(host))
    plugins = {entry["name"]: entry for entry in document["plugins"]}
    assert plugins["good"]["registers"] == {"architecture": ["GoodForCausalLM"]}
    assert plugins["good"]["api"] == ">=1"
    assert plugins["off"]["reason"].startswith("denied")
    assert document["problems"][0]["location"] == "/old"


def test_flags_reach_the_host(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plugins", "list", "--json", "--no-plugin-autoload"])
    plugins = json.loads(capsys.readouterr().out)["plugins"]
    assert {entry["name"] for entry in plugins if entry["status"] == "enabled"} == {"core"}
