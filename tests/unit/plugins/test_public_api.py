"""The public surface of `quire.api` changes on purpose only."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("public_api.py")


@pytest.fixture(scope="module")
def public_api() -> ModuleType:
    spec = importlib.util.spec_from_file_location("public_api_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_public_surface_is_as_recorded(public_api: ModuleType) -> None:
    recorded = public_api.SNAPSHOT.read_text(encoding="utf-8")
    current = public_api.render()
    if recorded != current:
        changes = difflib.unified_diff(recorded.splitlines(), current.splitlines(), lineterm="", n=0)
        pytest.fail(
            "quire.api changed:\n" + "\n".join(changes) + "\nIf that is meant: raise the minor of "
            "HOOK_API_VERSION (and add an adapter where plugins of the last minor would break), then run "
            f"`python {SCRIPT.relative_to(ROOT)}` and say it in CHANGELOG.md"
        )


def test_the_snapshot_sees_a_change(public_api: ModuleType, tmp_path: Path) -> None:
    """A signature, a field, its default, a hook's scope: each shows in the text."""
    text = public_api.render()
    for line in (
        "HOOK_API_VERSION = (1, 5)",
        "@hookspec(firstresult=True) def quire_resolve_model(name: str) -> Path | None",
        "    architecture: str",
        "    priority: int = 10",
        "    def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]",
    ):
        assert line in text.splitlines()
    assert "'quire_create_observers': HookPolicy('observer')" in text
    settings = text.split("[plugin_settings]")[1].split("\n\n")[0]
    assert "    deny: tuple[str, ...] = Field(())" in settings.splitlines()
