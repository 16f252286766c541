"""The command line starts at once: no torch before a model is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CHECK = """
import sys
HEAVY = ("torch", "transformers", "numpy", "tokenizers", "httpx", "rich", "fastapi", "uvicorn", "orjson")
from quire.cli.main import main
try:
    status = main({arguments!r})
except SystemExit as error:
    status = error.code
heavy = [name for name in HEAVY if name in sys.modules]
sys.exit(f"imported {{heavy}}" if heavy else status)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = CHECK.format(arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, input="")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["generate", "--help"],
        ["chat", "--help"],
        ["complete", "--help"],
        ["run-batch", "--help"],
        ["bench", "--help"],
        *(["bench", kind, "--help"] for kind in ("latency", "throughput", "serve")),
        ["chat", "--help=sampling"],
        ["collect-env", "--help"],
        ["plugins", "list", "--help"],
        ["plugins", "list"],
        ["plugins", "list", "--json"],
        ["plugins", "info", "llama"],
        ["plugins", "info", "llama", "--json"],
        *(["plugins", action, "--help"] for action in ("info", "doctor", "check", "ops", "new")),
    ],
)
def test_no_torch(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--prompt", "x", "--top-p", "7"], "top_p=7"),
        (["generate", "--prompt", "x", "--block-size", "0"], "block_size=0"),
        (["generate", "--prompt", "x", "--max-model-len", "much"], "max_model_len='much'"),
        (["generate", "--prompt", "x", "--logit-bias", "[1]"], "not a JSON object"),
        (["generate", "--prompt", "x", "--trust-remote-code"], "trust_remote_code"),
        (["generate", "--prompt-file", "/nowhere/at/all"], "/nowhere/at/all"),
        (["generate", "--prompt", "x", "--config", "/nowhere.toml"], "cannot read /nowhere.toml"),
    ],
)
def test_bad_flags_are_one_line_and_exit_2_before_torch(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not result.stdout


def test_twenty_plugins_are_listed_without_torch(install: Callable[..., Path]) -> None:
    for index in range(20):
        install(f"one-of-{index}", distribution=f"quire-pack-{index % 4}")
    result = run("plugins", "list", "--json")
    assert result.returncode == 0, result.stderr
    plugins = json.loads(result.stdout)["plugins"]
    enabled = {entry["name"] for entry in plugins if entry["status"] == "enabled"}
    assert {f"one-of-{index}" for index in range(20)} <= enabled


def test_a_new_distribution_is_written_without_torch(tmp_path: Path) -> None:
    result = run("plugins", "new", "model", "quire-abc", "--output", str(tmp_path / "quire-abc"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "quire-abc" / "pyproject.toml").is_file()


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in run("generate", "--prompt", "x", "--top-p", "7", "--debug").stderr


def test_unknown_command_exits_2() -> None:
    assert run("genrate").returncode == 2


def test_all_plugin_modules_import_no_torch() -> None:
    code = (
        "import sys\nfrom quire.plugins import PluginHost\nPluginHost.discover()\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_plugin_s_percent_sign_does_not_break_the_help(install: Callable[..., Path]) -> None:
    body = """
    @hookimpl
    def quire_register_commands():
        return [CommandSpec("quick", "100% faster", "nowhere:Command")]
    """
    install("percent", body)
    result = run("--help")
    assert result.returncode == 0, result.stderr
    assert "100% faster" in result.stdout


def test_what_a_plugin_prints_when_it_is_imported_does_not_spoil_json(install: Callable[..., Path]) -> None:
    install("chatty", "print('hello')")
    result = run("plugins", "list", "--json")
    assert result.returncode == 0 and "hello" in result.stderr
    assert "chatty" in {entry["name"] for entry in json.loads(result.stdout)["plugins"]}
