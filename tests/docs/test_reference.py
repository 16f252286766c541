"""The reference pages say what the code says, and every part of the public surface is documented."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from quire.api import extensions, hookspecs, specs
from quire.api.config import SECTIONS, PluginSettings
from quire.api.plugin_settings import OrderSettings
from quire.api.request import SamplingParams
from quire.cli.flags import sampling_settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_generate"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["settings.md", "cli.md", "hooks.md", "models.md"])
def test_reference_pages_are_current(generate: ModuleType, name: str) -> None:
    text = (DOCS / "reference" / name).read_text(encoding="utf-8")
    assert text == generate.pages()[name], f"docs/reference/{name} is stale: run `make docs`"


def hooks() -> list[str]:
    return [
        name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("quire_")
    ]


@pytest.mark.parametrize("name", hooks())
def test_every_hook_is_documented(name: str) -> None:
    hook = getattr(hookspecs, name)
    assert inspect.getdoc(hook), f"{name} has no docstring"
    text = (DOCS / "reference" / "hooks.md").read_text(encoding="utf-8")
    assert f"### `{name}`" in text
    for argument in inspect.signature(hook).parameters:
        assert argument in (inspect.getdoc(hook) or ""), f"{name} does not explain {argument}"


def test_every_spec_is_documented() -> None:
    text = (DOCS / "reference" / "hooks.md").read_text(encoding="utf-8")
    for name, kind in inspect.getmembers(specs, dataclasses.is_dataclass):
        assert f"### `{name}`" in text or kind.__module__ != specs.__name__
        assert kind.__doc__


def test_every_extension_is_documented() -> None:
    text = (DOCS / "reference" / "hooks.md").read_text(encoding="utf-8")
    for name, kind in inspect.getmembers(extensions, inspect.isclass):
        if kind.__module__ != extensions.__name__:
            continue
        assert f"### `{name}`" in text
        assert kind.__doc__
        for method, function in inspect.getmembers(kind, inspect.isfunction):
            if not method.startswith("_") and function.__module__ == kind.__module__:
                assert f"def {method}(" in text
    for point, scope in hookspecs.EXTENSION_POINTS.items():
        assert f"| `{point}` | {scope} |" in text


def test_hooks_stand_in_the_order_of_an_engines_life() -> None:
    text = (DOCS / "reference" / "hooks.md").read_text(encoding="utf-8")
    assert re.findall(r"^### `(quire_\w+)`$", text, re.MULTILINE) == list(hookspecs.HOOKS)


def test_every_setting_of_plugins_has_a_key_and_a_flag() -> None:
    text = (DOCS / "reference" / "settings.md").read_text(encoding="utf-8")
    flags = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    named = {
        "allow": "--plugin",
        "deny": "--no-plugin",
        "autoload": "--no-plugin-autoload",
        "options": "--plugin-option",
        "trace": "--trace-plugins",
    }
    for name in PluginSettings.model_fields:
        assert f"| `{name}` |" in text
        flag = named.get(name, f"--plugin-{name.replace('_', '-')}")
        assert re.search(rf"\| `{flag}[ `]", flags), f"{flag} is not in cli.md"


def test_every_setting_has_a_description() -> None:
    for model in (*SECTIONS.values(), PluginSettings, OrderSettings):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name} has no description"


def test_every_sampling_parameter_is_listed() -> None:
    assert len(sampling_settings()) == len(dataclasses.fields(SamplingParams))


def pages() -> list[Path]:
    return [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for name in re.findall(r"`((?:docs|benchmarks|examples)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_the_walk_names_files_that_exist() -> None:
    text = (DOCS / "explanation" / "one-request.md").read_text(encoding="utf-8")
    core = ROOT / "core" / "src" / "quire"
    named = re.findall(r"`((?:engine|scheduling|execution|kvcache|nn|ops|plugins|api)/\w+\.py)`", text)
    assert len(set(named)) >= 10
    for name in named:
        assert (core / name).exists(), name


def test_every_adr_is_listed() -> None:
    index = (DOCS / "adr" / "index.md").read_text(encoding="utf-8")
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in sorted(DOCS.rglob("*.md")):
        assert str(page.relative_to(DOCS)) in navigation, f"{page} is not in mkdocs.yml"
    for page in (DOCS / "adr").glob("0*.md"):
        assert page.name in index
