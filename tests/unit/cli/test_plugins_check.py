"""`quire plugins check`: what is checked, the table, the exit status. The suites have tests of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import quire.testing
from quire.plugins import PluginHost
from quire.testing.conformance import CheckResult

Install = Callable[..., Path]
Quire = Callable[..., tuple[int, str, str]]


class FakeSuites:
    """Stands for `quire.testing.check_plugin`."""

    def __init__(self) -> None:
        self.checked: list[str] = []
        self.results = [
            CheckResult("PolicyConformance mine", "test_order", "passed", "3 requests", 0.25),
            CheckResult("PolicyConformance mine", "test_pure", "skipped", "no clock " + "x" * 80, 0.0),
        ]

    def __call__(
        self, host: PluginHost, name: str, on_result: Callable[[CheckResult], object]
    ) -> list[CheckResult]:
        assert host.record(name).is_enabled
        self.checked.append(name)
        for result in self.results:
            on_result(result)
        return self.results


@pytest.fixture
def suites(monkeypatch: pytest.MonkeyPatch) -> FakeSuites:
    fake = FakeSuites()
    monkeypatch.setitem(vars(quire.testing), "check_plugin", fake)  # not getattr: it imports the real one
    return fake


def test_one_plugin(install: Install, quire: Quire, suites: FakeSuites) -> None:
    install("mine")
    status, out, _ = quire("plugins", "check", "mine")
    lines = out.splitlines()
    assert status == 0
    assert suites.checked == ["mine"]
    assert lines[0].split() == ["PLUGIN", "SUITE", "CHECK", "STATUS", "S", "NOTE"]
    assert lines[1].split() == [
        "mine",
        "PolicyConformance",
        "mine",
        "test_order",
        "passed",
        "0.25",
        "3",
        "requests",
    ]
    assert lines[2].endswith("...")
    assert lines[-1] == "1 passed, 0 failed, 1 skipped"


def test_a_distribution_is_all_its_plugins(install: Install, quire: Quire, suites: FakeSuites) -> None:
    install("one", distribution="Both_Of.them")
    install("two", distribution="Both_Of.them")
    quire("plugins", "check", "both-of-them")
    assert suites.checked == ["one", "two"]


def test_a_module_that_is_not_installed(
    site: Path, quire: Quire, suites: FakeSuites, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = (
        "from quire.api.hookspecs import hookimpl\nfrom quire.api.specs import PluginInfo\n"
        "class Plugin:\n    @hookimpl\n    def quire_plugin_info(self):\n        return PluginInfo(api='>=1')\n"
        "@hookimpl\ndef quire_plugin_info():\n    return PluginInfo(api='>=1')\n"
    )
    (tmp_path / "cliplug_here.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(site))
    assert quire("plugins", "check", "cliplug_here:")[0] == 0
    assert quire("plugins", "check", "cliplug_here:Plugin")[0] == 0
    assert suites.checked == ["cliplug_here", "Plugin"]


def test_an_installed_plugin_given_as_its_module_does_not_collide_with_itself(
    install: Install, quire: Quire, suites: FakeSuites
) -> None:
    body = """
        @hookimpl
        def quire_register_policies():
            return [PolicySpec("mine", "a:b")]
    """
    install("mine", body)
    assert quire("plugins", "check", "cliplug_mine:")[0] == 0
    assert suites.checked == ["cliplug_mine"]


def test_a_failure_is_status_1_and_shown_in_full(install: Install, quire: Quire, suites: FakeSuites) -> None:
    install("mine")
    detail = "differs by 0.5, " + "more " * 30
    suites.results.append(CheckResult("PolicyConformance mine", "test_keys", "failed", detail, 0.5))
    status, out, _ = quire("plugins", "check", "mine")
    assert status == 1
    assert "mine, PolicyConformance mine, test_keys:" in out
    assert detail in out
    assert out.splitlines()[-1] == "1 passed, 1 failed, 1 skipped"
    status, out, _ = quire("plugins", "check", "mine", "--json")
    assert status == 1
    assert [entry["status"] for entry in json.loads(out)["mine"]] == ["passed", "skipped", "failed"]


def test_nothing_to_check_is_said(install: Install, quire: Quire, suites: FakeSuites) -> None:
    install("mine")
    suites.results = []
    status, _, error = quire("plugins", "check", "mine")
    assert status == 0
    assert "nothing was checked" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lama"], "called 'lama': did you mean 'llama'?"),
        (["quire-model"], "called 'quire-model': did you mean 'quire-models'?"),
        (["llama", "--no-plugin", "llama"], "is disabled and cannot be checked: denied"),
        (["cliplug_nowhere:"], "cannot import 'cliplug_nowhere'"),
        (["json:no_such"], "json has no 'no_such'"),
        (["json:"], "quire_plugin_info"),
    ],
)
def test_errors(quire: Quire, suites: FakeSuites, arguments: list[str], message: str) -> None:
    status, _, error = quire("plugins", "check", *arguments)
    assert status == 2
    assert message in error
    assert suites.checked == []


def test_the_shipped_suites_are_run(install: Install, quire: Quire) -> None:
    body = """
        def only_float32(device, dtype):
            return None if dtype == "float32" else "float32 only"

        @hookimpl
        def quire_register_ops():
            return [
                OpImplSpec("silu", "right", "quire.ops.activation:silu", only_float32),
                OpImplSpec("relu", "wrong", "quire.ops.activation:silu", only_float32),
            ]
    """
    install("real", body)
    status, out, _ = quire("plugins", "check", "real", "--json")
    found = json.loads(out)["real"]
    assert status == 1
    assert {entry["status"] for entry in found if "silu/right" in entry["suite"]} <= {"passed", "skipped"}
    wrong = [entry["check"] for entry in found if entry["status"] == "failed"]
    assert "test_equals_the_reference" in wrong
    assert all("relu/wrong" in entry["suite"] for entry in found if entry["status"] == "failed")


def test_a_supports_that_raises_is_named(install: Install, quire: Quire) -> None:
    body = """
    def fails(device, dtype):
        raise KeyError("planted")

    @hookimpl
    def quire_register_ops():
        return [OpImplSpec("rms_norm", "mine", "quire.ops.norm:rms_norm", fails)]
    """
    install("shaky", body)
    status, _, error = quire("plugins", "check", "shaky")
    assert status == 2 and "shaky (quire-shaky 1.2), mine: supports() raised KeyError: 'planted'" in error
