"""Plugins for the commands' tests: real modules with real metadata, in a folder of their own."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quire.cli.main import main

HEADER = """
from quire.api.hookspecs import hookimpl
from quire.api.specs import *

@hookimpl
def quire_plugin_info():
    return PluginInfo(api=">=1,<2", description="made for a test")
"""

Install = Callable[..., Path]
Quire = Callable[..., tuple[int, str, str]]


def write_plugin(
    root: Path,
    name: str,
    body: str = "",
    *,
    header: str = HEADER,
    distribution: str | None = None,
    version: str = "1.2",
    requires: tuple[str, ...] = (),
    module: str | None = None,
) -> Path:
    """Write a plugin's module and the dist-info that announces it; an empty `module` leaves the module out."""
    distribution = distribution or f"quire-{name}"
    if module is None:
        module = f"cliplug_{name}".replace("-", "_")
        root.mkdir(parents=True, exist_ok=True)
        (root / f"{module}.py").write_text(header + textwrap.dedent(body))
    metadata = root / f"{distribution.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    lines = ["Metadata-Version: 2.1", f"Name: {distribution}", f"Version: {version}"]
    lines += [f"Requires-Dist: {text}" for text in requires]
    (metadata / "METADATA").write_text("\n".join(lines) + "\n")
    with (metadata / "entry_points.txt").open("a") as file:
        if file.tell() == 0:
            file.write("[quire]\n")
        file.write(f"{name} = {module}\n")
    return metadata


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path, of this process and of those that it starts; its modules are forgotten after."""
    root = tmp_path / "site"
    root.mkdir()
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.delenv("QUIRE_PLUGINS", raising=False)
    yield root
    for name in [name for name in sys.modules if name.startswith("cliplug_")]:
        del sys.modules[name]


@pytest.fixture
def install(site: Path) -> Install:
    """`write_plugin` into the site."""
    return lambda name, body="", **keywords: write_plugin(keywords.pop("root", site), name, body, **keywords)


@pytest.fixture
def quire(capsys: pytest.CaptureFixture[str]) -> Quire:
    """Run a command in this process: exit status, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main(list(arguments))
        except SystemExit as error:
            status = int(error.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
