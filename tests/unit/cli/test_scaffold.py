"""`quire plugins new`: names, files, refusals. That the result works is shown by test_scaffold_installed.py."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from quire.api.errors import ConfigError
from quire.scaffold import KINDS, derive_names, render_distribution, write_distribution
from quire.scaffold.names import ScaffoldNames, check_names

Install = Callable[..., Path]
Quire = Callable[..., tuple[int, str, str]]

LEFTOVERS = re.compile(
    r"my-(model|op|policy|drafter|logits-processor|observer|plugin)|my_(model|op|policy|drafter|logits)|My(Model|Drafter)|[A-Z]+_VERSION|DESCRIPTION|REQUIREMENTS"
)


def render(kind: str, name: str = "quire-abc-x2") -> dict[str, str]:
    return render_distribution(kind, derive_names(name), "0.3.1+local")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("quire-abc-x2", ScaffoldNames("quire-abc-x2", "quire_abc_x2", "abc-x2", "abc_x2", "AbcX2")),
        ("abc", ScaffoldNames("abc", "abc", "abc", "abc", "Abc")),
        (
            "quire-my-model",
            ScaffoldNames("quire-my-model", "quire_my_model", "my-model", "my_model", "MyModel"),
        ),
    ],
)
def test_names(name: str, expected: ScaffoldNames) -> None:
    assert derive_names(name) == expected


@pytest.mark.parametrize(
    "name", ["", "Abc", "a_b", "a--b", "-a", "a-", "1a", "quire-", "quire-1a", "a.b", "a/../b", "ä"]
)
def test_malformed_names(name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"NAME={name!r}")):
        derive_names(name)


def test_a_malformed_name_comes_with_a_proposal() -> None:
    with pytest.raises(ConfigError, match="e.g. 'my-filter-2'"):
        derive_names("My Filter_2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("json", "a module 'json' exists already"),
        ("torch", "a module 'torch' exists already"),
        ("quire-models", "a module 'quire_models' exists already"),
        ("class", "'class' is a word of Python"),
        ("quire-lambda", "is a word of Python"),
        ("quire-llama", "the plugin name 'llama' is taken by quire-models.*e.g. 'quire-my-llama'"),
        ("llama", "the plugin name 'llama' is taken by quire-models.*e.g. 'quire-my-llama'"),
    ],
)
def test_names_that_are_taken(name: str, message: str) -> None:
    from quire.plugins import discover_candidates

    with pytest.raises(ConfigError, match=message):
        check_names(derive_names(name), discover_candidates().candidates)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_template_is_left(kind: str) -> None:
    files = render(kind)
    assert {"pyproject.toml", "README.md", ".gitignore", "tests/test_abc_x2.py"} <= files.keys()
    assert {"src/quire_abc_x2/__init__.py", "src/quire_abc_x2/plugin.py"} <= files.keys()
    for path, text in files.items():
        assert not LEFTOVERS.search(path + text), path
        if path.endswith(".py"):
            ast.parse(text, path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_of_the_template_itself_can_be_given(kind: str) -> None:
    files = render(kind, f"quire-my-{kind}-my-{kind}")
    assert f'my-{kind}-my-{kind} = "quire_my' in files["pyproject.toml"]


@pytest.mark.parametrize("kind", KINDS)
def test_pyproject(kind: str) -> None:
    project = tomllib.loads(render(kind)["pyproject.toml"])
    assert project["build-system"]["build-backend"] == "hatchling.build"
    assert project["project"]["name"] == "quire-abc-x2"
    assert project["project"]["dependencies"] == ["quire-core>=0.3.1"]
    assert project["project"]["entry-points"] == {"quire": {"abc-x2": "quire_abc_x2.plugin"}}
    assert project["project"]["optional-dependencies"]["test"] == list(KINDS[kind].test_requirements)


@pytest.mark.parametrize("kind", KINDS)
def test_plugin_modules_import_the_api_alone(kind: str) -> None:
    tree = ast.parse(render(kind)["src/quire_abc_x2/plugin.py"])
    at_load = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in at_load:
        assert isinstance(node, ast.ImportFrom)
        assert (node.module or "").partition(".")[0] in ("__future__", "quire")
        assert node.module == "__future__" or (node.module or "").startswith("quire.api.")


def test_a_model_is_at_most_150_lines() -> None:
    assert len(render("model")["src/quire_abc_x2/model.py"].splitlines()) <= 150


def test_the_architecture_of_the_template_is_free(quire: Quire) -> None:
    _, out, _ = quire("plugins", "list", "--json")
    taken = [
        name for entry in json.loads(out)["plugins"] for name in entry["registers"].get("architecture", [])
    ]
    text = render("model")["src/quire_abc_x2/plugin.py"]
    assert not [name for name in taken if f'"{name}"' in text]


def test_the_command_writes_and_says_what_is_next(quire: Quire, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "here"
    status, out, _ = quire("plugins", "new", "policy", "quire-abc-x2", "--output", str(folder))
    assert status == 0
    assert (folder / "src" / "quire_abc_x2" / "policy.py").is_file()
    assert (folder / ".gitignore").is_file()
    assert "pip install -e '.[test]' && pytest" in out
    assert "quire plugins check abc-x2" in out


def test_the_default_folder_is_the_name(
    quire: Quire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quire-abc").mkdir()
    assert quire("plugins", "new", "observer", "quire-abc")[0] == 0
    assert (tmp_path / "quire-abc" / "pyproject.toml").is_file()


def test_nothing_is_overwritten(quire: Quire, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    status, _, error = quire("plugins", "new", "op", "quire-abc", "--output", str(tmp_path))
    assert status == 2
    assert "nothing is overwritten" in error
    assert [entry.name for entry in tmp_path.iterdir()] == ["precious.txt"]
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        write_distribution({"a": "b"}, tmp_path / "precious.txt")
    with pytest.raises(ConfigError, match="cannot write"):
        write_distribution({"a": "b"}, tmp_path / "precious.txt" / "below")


def test_an_unknown_kind(quire: Quire) -> None:
    status, _, error = quire("plugins", "new", "modell", "quire-abc")
    assert status == 2
    assert "KIND='modell' is unknown: did you mean 'model'?" in error


def test_templates_are_shipped() -> None:
    root = Path(sys.modules["quire.scaffold"].__file__ or "").parent / "templates"
    assert {entry.name for entry in root.iterdir()} == {*KINDS, "common"}
    assert not list(root.rglob(".gitignore")), "hatchling would obey it"


def test_rendered_python_passes_ruff(tmp_path: Path) -> None:
    pytest.importorskip("ruff")
    for kind in KINDS:
        write_distribution(render(kind), tmp_path / kind)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F,UP,B", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_what_the_doctor_imports_is_declared() -> None:
    requires = importlib.metadata.requires("quire-core") or []
    declared = Path(__file__).parents[3] / "core" / "pyproject.toml"
    texts = [*requires, *tomllib.loads(declared.read_text())["project"]["dependencies"]]
    assert any(text.startswith("packaging") for text in texts)
