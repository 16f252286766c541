"""`quire plugins info`: one plugin in full."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Install = Callable[..., Path]
Quire = Callable[..., tuple[int, str, str]]

FULL = """
from quire.api.hookspecs import hookimpl
from quire.api.specs import *
from pydantic import BaseModel, Field

class Options(BaseModel):
    path: str | None = Field(None, description="where it writes")
    every: int = Field(3, ge=1, description="how often")
    names: tuple[str, ...] = Field(..., description="needed")

@hookimpl
def quire_plugin_info():
    return PluginInfo(
        api=">=1,<2", description="a full one", options=Options, after=("llama",), runs_in=("engine",)
    )

@hookimpl
def quire_register_policies():
    return [PolicySpec("mine", "elsewhere:Mine", Capabilities(dtypes=("float32",), drafts=False))]
"""


def test_text(install: Install, quire: Quire, site: Path) -> None:
    install("full", header=FULL)
    status, out, _ = quire("plugins", "info", "full", "--plugin-option", 'full.names=["a"]')
    assert status == 0
    facts = dict(
        line.strip().split(":", 1) for line in out.splitlines() if line.startswith("  ") and ":" in line
    )
    assert facts["distribution"].strip() == "quire-full 1.2"
    assert facts["source"].strip() == str(site / "cliplug_full.py")
    assert facts["after"].strip() == "llama"
    assert facts["runs in"].strip() == "engine"
    assert facts["changes outputs"].strip() == "no"
    assert facts["hooks"].strip() == "quire_plugin_info, quire_register_policies"
    lines = [line.split() for line in out.splitlines()]
    assert ["every", "int", "3", "3", "how", "often"] in lines
    assert ["path", "str", "|", "None", "None", "None", "where", "it", "writes"] in lines
    assert ["names", "tuple[str,", "...]", "required", "('a',)", "needed"] in lines
    assert ["policy", "mine", "elsewhere:Mine", "dtypes=('float32',),", "drafts=False"] in lines
    assert ["quire_register_policies", "1", "0"] in [line[:3] for line in lines]


def test_json(install: Install, quire: Quire) -> None:
    install("full", header=FULL)
    _, out, _ = quire("plugins", "info", "full", "--json", "--plugin-option", 'full.names=["a"]')
    about = json.loads(out)
    order = about["load_order"]
    assert 1 < order["position"] <= order["of"]
    assert about["specs"] == [
        {
            "kind": "policy",
            "name": "mine",
            "factory": "elsewhere:Mine",
            "limits": {"dtypes": ["float32"], "drafts": False},
        }
    ]
    assert [option["name"] for option in about["options"]] == ["path", "every", "names"]
    assert about["calls"]["quire_plugin_info"]["calls"] == 1


def test_schema_is_that_of_the_options_alone(install: Install, quire: Quire) -> None:
    install("full", header=FULL)
    status, out, _ = quire("plugins", "info", "full", "--schema", "--plugin-option", 'full.names=["a"]')
    schema = json.loads(out)
    assert status == 0
    assert schema["properties"]["every"]["minimum"] == 1
    assert schema["required"] == ["names"]


def test_a_disabled_plugin_is_not_imported(install: Install, quire: Quire, site: Path) -> None:
    install("off", "raise SystemExit('imported')")
    status, out, _ = quire("plugins", "info", "off", "--no-plugin", "off")
    assert status == 0
    assert "disabled: denied by plugins.deny" in out
    assert str(site / "cliplug_off.py") in out
    assert "options" not in out


def test_a_failed_plugin_is_status_1(install: Install, quire: Quire) -> None:
    install("bad", "raise RuntimeError('broken wing')")
    status, out, _ = quire("plugins", "info", "bad")
    assert status == 1
    assert "broken wing" in out


def test_what_prefer_gives_away_is_shown(install: Install, quire: Quire) -> None:
    body = """
        @hookimpl
        def quire_register_models():
            return [ModelSpec("LlamaForCausalLM", "nowhere:Llama")]
    """
    install("rival", body)
    _, out, _ = quire("plugins", "info", "rival", "--plugin-prefer", "architecture:LlamaForCausalLM=llama")
    assert "left to other plugins" in out
    assert "LlamaForCausalLM" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lama"], "no plugin is called 'lama': did you mean 'llama'?"),
        (["llama", "--schema"], "plugin 'llama' has no options that could be shown: it declares none"),
        (["llama", "--schema", "--no-plugin", "llama"], "it is disabled: denied"),
    ],
)
def test_errors(quire: Quire, arguments: list[str], message: str) -> None:
    status, _, error = quire("plugins", "info", *arguments)
    assert status == 2
    assert message in error
