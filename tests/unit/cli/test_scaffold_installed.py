"""What `quire plugins new` writes installs with pip and passes its own tests, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from quire.scaffold import KINDS, derive_names, render_distribution, write_distribution

FAST = ("model", "observer")


class Environment:
    """A virtual environment that sees the packages of this one; what is installed into it stays there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "env", with_pip=False, symlinks=True)
        self.python = folder / "env" / "bin" / "python"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        site = folder / "env" / "lib" / version / "site-packages"
        site.joinpath("outer.pth").write_text(
            f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n"
        )

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run the environment's Python."""
        hidden = (
            "PYTHONPATH",
            "QUIRE_PLUGINS",
            "PYTEST_ADDOPTS",
            "PYTEST_CURRENT_TEST",
            "PYTEST_XDIST_WORKER",
        )
        variables = {name: value for name, value in os.environ.items() if name not in hidden}
        return subprocess.run(
            [str(self.python), *arguments],
            cwd=cwd or self.folder,
            env={**variables, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def install(self, project: Path) -> None:
        """`pip install -e`, without an index."""
        command = ["pip", "--isolated", "--python", str(self.python), "install", "--quiet", "--no-index"]
        command += ["--no-build-isolation", "--no-deps", "--disable-pip-version-check", "-e", str(project)]
        result = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    for needed in ("pip", "hatchling", "editables"):
        pytest.importorskip(needed)
    return Environment(tmp_path_factory.mktemp("scaffold"))


@pytest.mark.parametrize(
    "kind", [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_installs_and_passes(environment: Environment, kind: str) -> None:
    project = environment.folder / f"quire-fresh-{kind}"
    names = derive_names(project.name)
    write_distribution(render_distribution(kind, names, "0.0.1"), project)
    environment.install(project)

    listed = environment.run("-m", "quire.cli", "plugins", "list", "--json")
    plugins = {entry["name"]: entry for entry in json.loads(listed.stdout)["plugins"]}
    assert plugins[names.plugin]["status"] == "enabled", plugins[names.plugin]
    assert plugins[names.plugin]["distribution"] == project.name

    tests = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project)
    assert tests.returncode == 0, tests.stdout + tests.stderr
    assert "passed" in tests.stdout

    if KINDS[kind].has_suite and kind not in FAST:  # the suites ran above, by pytest
        checked = environment.run("-m", "quire.cli", "plugins", "check", names.plugin)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert " 0 failed" in checked.stdout
        assert not checked.stdout.splitlines()[-1].startswith("0 passed")


@pytest.mark.slow
def test_a_broken_model_fails_its_tests_and_the_check(environment: Environment) -> None:
    project = environment.folder / "quire-faulty"
    names = derive_names(project.name)
    files = render_distribution("model", names, "0.0.1")
    path = "src/quire_faulty/model.py"
    right = "* self.residual_multiplier\n        return x"
    assert right in files[path]
    files[path] = files[path].replace(right, "\n        return x")
    files["tests/test_faulty.py"] = files["tests/test_faulty.py"].replace(
        "class TestFaulty(", "class Unused("
    )
    files["src/quire_faulty/plugin.py"] = files["src/quire_faulty/plugin.py"].replace(
        'GraniteForCausalLM", "', 'FaultyForCausalLM", "'
    )
    files["tests/test_faulty.py"] = files["tests/test_faulty.py"].replace(
        "configs = {", 'factory = "quire_faulty.model:FaultyModel"\n    configs = {'
    )
    write_distribution(files, project)
    environment.install(project)
    tests = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project)
    assert tests.returncode == 1, tests.stdout + tests.stderr
    assert "differ from the reference" in tests.stdout
    checked = environment.run("-m", "quire.cli", "plugins", "check", "faulty")
    assert checked.returncode == 1
    assert "transformers" in checked.stdout  # it has no FaultyForCausalLM
