"""`quire plugins doctor` and `ops`: every planted fault is found, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quire.cli.plugins.modules import find_module, measure_imports, source_file

Install = Callable[..., Path]
Quire = Callable[..., tuple[int, str, str]]

OPS = """
    def no_bfloat16(device, dtype):
        return "bfloat16 is not served" if dtype == "bfloat16" else None

    @hookimpl
    def quire_register_ops():
        return [OpImplSpec("rms_norm", "mine", "quire.ops.norm:rms_norm", no_bfloat16, priority=99)]
"""


@pytest.fixture
def doctor(quire: Quire) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Run it and give back the status and the document."""

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        status, out, error = quire("plugins", "doctor", "--json", *arguments)
        assert out, error
        return status, json.loads(out)

    return run


def errors_of(document: dict[str, Any]) -> list[str]:
    return [f"{entry['about']}: {entry['message']}" for entry in document["findings"] if entry["is_error"]]


def notes_of(document: dict[str, Any]) -> list[str]:
    return [
        f"{entry['about']}: {entry['message']}" for entry in document["findings"] if not entry["is_error"]
    ]


def test_a_sound_installation(install: Install, doctor: Any) -> None:
    install("fine", OPS, requires=("quire-core", "never-heard-of; extra == 'more'"))
    status, document = doctor()
    assert errors_of(document) == []
    assert status == 0
    assert document["is_well"] is True
    fine = next(entry for entry in document["plugins"] if entry["name"] == "fine")
    assert fine["import"]["error"] == ""
    assert 0 < fine["import"]["seconds"] < 30
    assert fine["api"] == ">=1,<2"
    assert len(document["fingerprint"]) == 64
    mine, *others = document["choices"]["ops"]["rms_norm"]["candidates"]
    assert mine["reason"] == "bfloat16 is not served"
    assert document["choices"]["attention"][0]["reason"] is None
    assert all(other["reason"] != "bfloat16 is not served" for other in others)


def test_the_fingerprint_depends_on_what_is_loaded(install: Install, doctor: Any) -> None:
    install("fine", OPS)
    prints = {doctor(*flags)[1]["fingerprint"] for flags in ([], ["--no-plugin", "fine"], [])}
    assert len(prints) == 2


def test_failures_and_clashes(install: Install, doctor: Any) -> None:
    install("stale", module="not_there_at_all")
    install("raises", "raise RuntimeError('broken wing')")
    header = "from quire.api.hookspecs import hookimpl\nfrom quire.api.specs import PluginInfo\n"
    future = "@hookimpl\ndef quire_plugin_info():\n    return PluginInfo(api='>=7')\n"
    install("future", future, header=header)
    install("clash", requires=("quire-core>=99", "surely-not-installed"))
    install("twice", distribution="first-dist", module="cliplug_clash")
    install("twice", distribution="second-dist", module="cliplug_clash")
    status, document = doctor()
    errors = errors_of(document)
    assert status == 1
    assert len(errors) == 7
    for words in (
        ("stale", "not_there_at_all", "does not exist"),
        ("raises (quire-raises 1.2)", "broken wing"),
        ("future", ">=7", "1.2"),
        ("versions", "quire-clash 1.2 requires quire-core>=99", "pip install"),
        ("versions", "surely-not-installed", "not installed"),
        ("twice (first-dist 1.2)", "second-dist"),
        ("twice (second-dist 1.2)", "first-dist"),
    ):
        assert any(all(word in error for word in words) for error in errors), (words, errors)


def test_two_folders_of_one_distribution(install: Install, doctor: Any, site: Path) -> None:
    install("double", version="1.0")
    install("double", version="2.0")
    core = site / "quire_core-0.0.1.dist-info"
    core.mkdir()
    (core / "METADATA").write_text("Metadata-Version: 2.1\nName: quire-core\nVersion: 0.0.1\n")
    status, document = doctor()
    errors = [error for error in errors_of(document) if error.startswith("metadata")]
    assert status == 1
    assert len(errors) == 2
    assert any("quire-double" in error and "shadowed" in error for error in errors)
    assert any("quire-core is installed 2 times" in error and "0.0.1" in error for error in errors)


def test_plugins_that_are_off_are_looked_at_and_not_imported(install: Install, doctor: Any) -> None:
    install("bomb", "raise SystemExit('imported')")
    install("gone", module="not_there.plugin")
    for distribution in ("first-dist", "second-dist"):
        install("twice", distribution=distribution, module="cliplug_bomb")
    flags = [flag for name in ("bomb", "gone", "twice") for flag in ("--no-plugin", name)]
    status, document = doctor(*flags)
    [error] = errors_of(document)
    assert status == 1
    assert "'gone'" in error
    assert "not_there.plugin" in error
    assert any("'twice' is claimed by first-dist 1.2 (disabled)" in note for note in notes_of(document))
    assert all(entry["import"] is None for entry in document["plugins"] if entry["name"] == "bomb")


def test_heavy_and_slow_imports_are_notes(install: Install, doctor: Any) -> None:
    install("heavy", "import numpy")
    install("slow", "import time\ntime.sleep(0.12)")
    status, document = doctor()
    assert status == 0
    notes = notes_of(document)
    assert any(note.startswith("heavy: its module imports numpy") for note in notes)
    assert any(note.startswith("slow: its import takes 0.1") for note in notes)


def test_broken_implementations(install: Install, doctor: Any) -> None:
    body = """
        def broken(device, dtype):
            raise ValueError("no idea")

        @hookimpl
        def quire_register_ops():
            return [
                OpImplSpec("rms_norm", "raises", "quire.ops.norm:rms_norm", broken),
                OpImplSpec("silu", "true", "quire.ops.norm:rms_norm", lambda device, dtype: True),
                OpImplSpec("gelu", "gone", "quire.ops.norm:no_such", lambda device, dtype: None, priority=99),
                OpImplSpec("no_such_op", "mine", "quire.ops.norm:rms_norm", lambda device, dtype: None),
            ]
    """
    install("broken", body)
    status, document = doctor("--dtype", "float32")
    errors = errors_of(document)
    assert status == 1
    assert len(errors) == 4
    for words in (
        ("raises", "supports() raised ValueError: no idea"),
        ("true", "supports() answered True"),
        ("no_such", "quire.ops.norm has no"),
        ("implements the op 'no_such_op'", "OpSpec"),
    ):
        assert any(all(word in error for word in words) for error in errors), (words, errors)


def test_settings_that_keep_an_engine_from_starting(doctor: Any) -> None:
    status, document = doctor("--plugin", "lama")
    assert status == 1
    assert errors_of(document) == ["start: the allowed plugin 'lama' is not installed: did you mean 'llama'?"]


def test_text_ends_with_what_is_wrong(install: Install, quire: Quire) -> None:
    install("raises", "raise RuntimeError('broken wing')")
    status, out, _ = quire("plugins", "doctor")
    lines = out.splitlines()
    assert status == 1
    assert lines[-1] == "1 to mend"
    assert lines[-2].startswith("error: raises (quire-raises 1.2)")
    assert any(line.split()[:4] == ["raises", "quire-raises", "1.2", "failed"] for line in lines)
    assert any(line.startswith("bfloat16 on cpu") for line in lines)


def test_ops_for_a_dtype(install: Install, quire: Quire) -> None:
    install("fine", OPS)
    status, out, _ = quire("plugins", "ops", "--dtype", "float32")
    rows = [line.split() for line in out.splitlines()]
    assert status == 0
    assert ["rms_norm", "mine", "99", "fine", "(quire-fine", "1.2)", "serves"] in rows
    assert any(row[:1] == ["reference"] and "mine has priority 99, this 0" in " ".join(row) for row in rows)
    _, out, _ = quire("plugins", "ops", "--json")
    document = json.loads(out)
    assert document["dtype"] == "bfloat16"
    assert document["ops"]["rms_norm"]["candidates"][0]["reason"] == "bfloat16 is not served"


def test_a_device_that_is_not_here(quire: Quire) -> None:
    status, _, error = quire("plugins", "ops", "--device", "tpu")
    assert status == 2
    assert "device 'tpu' is unknown" in error
    status, out, _ = quire("plugins", "doctor", "--device", "tpu")
    assert status == 1
    assert "error: ops: device 'tpu' is unknown" in out


def test_modules_are_found_without_import(site: Path) -> None:
    package = site / "cliplug_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "inner.py").write_text("")
    assert source_file("cliplug_package.inner") == str(package / "inner.py")
    assert find_module("cliplug_package.other") is None
    assert find_module("cliplug_nothing.other") is None


def test_an_import_that_ends_the_process_is_named(site: Path) -> None:
    (site / "cliplug_prints.py").write_text("print('hello')")
    (site / "cliplug_exits.py").write_text("import os\nos._exit(3)")
    costs = measure_imports(["cliplug_prints", "cliplug_exits", "cliplug_never"])
    assert costs["cliplug_prints"].error == ""
    assert "status 3" in costs["cliplug_exits"].error
    assert costs["cliplug_never"].seconds is None


def test_a_distribution_whose_plugin_is_not_announced_is_noted(install: Install, doctor: Any) -> None:
    typo = install("typo")
    (typo / "entry_points.txt").write_text("[quire.plugins]\ntypo = cliplug_typo\n")
    stale = install("stale", requires=("quire-core>=0.1",))
    (stale / "entry_points.txt").unlink()
    _, document = doctor()
    first, second = (
        next(note for note in notes_of(document) if f"quire-{name} 1.2" in note) for name in ("typo", "stale")
    )
    assert "has entry points under quire.plugins" in first and "reads the group 'quire'" in first
    assert f"requires quire-core and brings no plugin; where it should, its metadata in {stale}" in second


def test_of_equal_priorities_the_name_decides_and_says_so(install: Install, quire: Quire) -> None:
    install("rival", OPS.replace('"mine"', '"nativf"').replace("priority=99", "priority=10"))
    _, out, _ = quire("plugins", "ops", "--dtype", "float32")
    assert "native has the same priority, 10, and its name comes first" in out
