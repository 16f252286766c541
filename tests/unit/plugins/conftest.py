"""Plugins for the host's tests: real packages with real metadata, in a temporary folder."""

from __future__ import annotations

import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quire.api.config import PluginSettings
from quire.api.hookspecs import hookimpl
from quire.api.specs import PluginInfo
from quire.plugins import Discovery, HookApi, PluginHost, discover_candidates

MakePlugin = Callable[..., Path]

INFO = """
from quire.api.hookspecs import hookimpl
from quire.api.specs import *

@hookimpl
def quire_plugin_info():
    return PluginInfo(api=">=1,<2", description="made for a test")
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path; modules imported from it are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def make_plugin(site: Path) -> MakePlugin:
    """Write a module and the dist-info that announces it as a plugin."""

    def make(
        name: str,
        body: str = "",
        *,
        distribution: str | None = None,
        version: str = "1.2",
        info: str = INFO,
        module: str | None = None,
        folder: Path | None = None,
    ) -> Path:
        distribution = distribution or f"quire-{name}"
        module = module or f"testplug_{distribution}_{name}".replace("-", "_")
        root = folder or site
        root.mkdir(exist_ok=True)
        (root / f"{module}.py").write_text(info + textwrap.dedent(body))
        metadata = root / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir(exist_ok=True)
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        (metadata / "entry_points.txt").write_text(f"[quire]\n{name} = {module}\n")
        return metadata

    return make


@pytest.fixture
def found(site: Path) -> Callable[[], Discovery]:
    """Discovery of the plugins of the test alone, whatever else is installed here."""

    def discover() -> Discovery:
        everything = discover_candidates()
        mine = tuple(entry for entry in everything.candidates if str(site) in entry.location)
        problems = tuple(entry for entry in everything.problems if str(site) in entry.location)
        return Discovery(mine, problems)

    return discover


@pytest.fixture
def plugin() -> Callable[..., types.ModuleType]:
    """Make a plugin in memory: hooks by name without the prefix, e.g. `register_models=lambda: []`."""

    def make(
        name: str, *, info: PluginInfo | None = None, **hooks: Callable[..., object]
    ) -> types.ModuleType:
        module = types.ModuleType(name)
        info = info or PluginInfo(api=">=1,<2")
        module.quire_plugin_info = hookimpl(lambda: info)  # type: ignore[attr-defined]  # a module made here
        for hook, function in hooks.items():
            setattr(module, f"quire_{hook}", hookimpl(function))
        return module

    return make


@pytest.fixture
def host_of() -> Callable[..., PluginHost]:
    """A host of core and the given plugins alone; keywords are settings, and `strict` and `api`."""

    def build(
        *plugins: object, strict: bool = True, api: HookApi | None = None, **settings: object
    ) -> PluginHost:
        nothing = Discovery((), ())
        given = PluginSettings.model_validate(settings)
        return PluginHost.discover(given, plugins, strict=strict, discovery=nothing, api=api)

    return build
