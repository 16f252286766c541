"""Registries, late factories and version ranges."""

from __future__ import annotations

import pytest

from quire.api.errors import PluginError
from quire.api.specs import ModelSpec, Registration
from quire.plugins import Registry, resolve_factory
from quire.plugins.versions import is_in_range


def registration(name: str, plugin: str = "p") -> Registration:
    return Registration(ModelSpec(name, "a:b"), plugin, f"dist-{plugin}", "1.0")


def test_lookups() -> None:
    registry: Registry[ModelSpec] = Registry("architecture")
    registry.add("Llama", registration("Llama"))
    registry.add("Gpt", registration("Gpt"))
    assert list(registry) == ["Gpt", "Llama"]
    assert len(registry) == 2
    assert registry.spec("Llama").architecture == "Llama"
    assert registry.get("nope") is None
    assert [spec.architecture for spec in registry.specs()] == ["Gpt", "Llama"]
    with pytest.raises(PluginError, match=r"no architecture is called 'Lama': did you mean 'Llama'\?"):
        registry.spec("Lama")
    with pytest.raises(PluginError, match="there are Gpt, Llama"):
        registry.spec("zzzz")


def test_factories_are_imported_late() -> None:
    assert resolve_factory("collections:OrderedDict.fromkeys") is not None
    assert resolve_factory(dict) is dict


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("collections", "malformed"),
        (":x", "malformed"),
        ("not_there_at_all:x", "ModuleNotFoundError"),
        ("collections:OrderdDict", "did you mean 'OrderedDict'"),
    ],
)
def test_a_bad_factory_says_whose_it_is(reference: str, message: str) -> None:
    with pytest.raises(PluginError, match=message) as caught:
        resolve_factory(reference, registration("A"))
    assert "plugin 'p' (dist-p 1.0)" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (">=1,<2", True),
        (">=1.0", True),
        ("==1", True),
        ("~=1.0", True),
        ("<=1.0, !=1.1", True),
        (">1", False),
        ("<1", False),
        (">=1.1,<2", False),
        ("!=1.0", False),
        ("~=2.0", False),
    ],
)
def test_ranges(text: str, expected: bool) -> None:
    assert is_in_range((1, 0), text) is expected


@pytest.mark.parametrize("text", ["", "1", ">=1,,<2", ">=a", "=>1", "~=1"])
def test_malformed_ranges(text: str) -> None:
    with pytest.raises(PluginError, match="api="):
        is_in_range((1, 0), text)
