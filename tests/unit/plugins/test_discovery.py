"""Discovery reads metadata, survives bad metadata, and imports nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from quire.plugins import Discovery

MakePlugin = Callable[..., Path]
Found = Callable[[], Discovery]


def test_candidates_are_sorted_and_not_imported(make_plugin: MakePlugin, found: Found) -> None:
    make_plugin("zeta", module="zeta_module")
    make_plugin("alpha", version="3.1")
    names = [(entry.name, entry.origin) for entry in found().candidates]
    assert names == [("alpha", "quire-alpha 3.1"), ("zeta", "quire-zeta 1.2")]
    assert "zeta_module" not in sys.modules


def test_other_groups_are_ignored(make_plugin: MakePlugin, found: Found) -> None:
    metadata = make_plugin("foo")
    (metadata / "entry_points.txt").write_text("[console_scripts]\nfoo = foo:main\n")
    assert found().candidates == ()


def test_metadata_without_a_name_is_reported(make_plugin: MakePlugin, found: Found) -> None:
    metadata = make_plugin("foo")
    make_plugin("good")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\n")
    discovery = found()
    assert [entry.name for entry in discovery.candidates] == ["good"]
    assert len(discovery.problems) == 1
    assert "no Name" in discovery.problems[0].reason


def test_missing_metadata_file_is_survived(make_plugin: MakePlugin, found: Found) -> None:
    metadata = make_plugin("foo")
    (metadata / "METADATA").unlink()
    assert found().candidates == ()


def test_the_second_metadata_of_one_distribution_is_shadowed(
    make_plugin: MakePlugin, found: Found, site: Path
) -> None:
    make_plugin("foo", version="2.0")
    make_plugin("foo", version="1.0")
    discovery = found()
    assert len(discovery.candidates) == 1
    assert "shadowed" in discovery.problems[0].reason
    assert str(site) in discovery.problems[0].location
