"""What the tests of clients share: where clients are, and a parser of tool calls for what `tiny` can say."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_plugins import write_plugin

PACKAGE = "openai@7"
LITELLM = ("litellm==1.*", "mcp==2.*")
PARSER = '''
import json

from quire.api.hookspecs import hookimpl
from quire.api.serving import ParsedText, ToolCallDelta
from quire.api.specs import PluginInfo, ToolParserSpec


@hookimpl
def quire_plugin_info():
    return PluginInfo(api=">=1.3,<2", description="made for a test", affects_outputs=False)


@hookimpl
def quire_register_tool_parsers():
    return [ToolParserSpec("capitals", "capitals:Capitals")]


class Capitals:
    """An answer that is {"country": ..., "capital": ...} is a call of the first tool."""

    def __init__(self, context):
        self.name = context.tools[0]["function"]["name"]
        self.text = ""

    def push(self, text):
        self.text += text
        return ParsedText()

    def flush(self):
        try:
            is_call = "capital" in json.loads(self.text)
        except (ValueError, TypeError):
            is_call = False
        if not is_call:
            return ParsedText(content=self.text)
        return ParsedText(tool_calls=[ToolCallDelta(0, self.name, self.text)])
'''


@pytest.fixture
def capitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Flags of a server whose plugin finds tool calls in what `tiny` says of capitals."""
    folder = tmp_path / "plugins"
    write_plugin(folder, "capitals", PARSER)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return ("--tool-call-parser", "capitals")


def install(package: str, *command: str) -> None:
    """Run a command that installs; where it cannot, there is no registry, and what needs it is skipped."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired as error:
        pytest.skip(f"{package} cannot be installed: {error}")
    if run.returncode:
        reasons = [line for line in run.stderr.splitlines() if "error" in line.lower()]
        pytest.skip(f"{package} cannot be installed: {reasons[:1]}")


@pytest.fixture(scope="session")
def npm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which Node finds the client."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node and npm here")
    folder = tmp_path_factory.mktemp("npm")
    install(PACKAGE, "npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), PACKAGE)
    return folder


@pytest.fixture(scope="session")
def litellm_python() -> str:
    """A Python that has litellm, and mcp, which it imports for tools.

    They want another version of the openai package than the project's, so they have an environment of
    their own, inside the project's: `make clean` takes it away.
    """
    folder = Path(sys.prefix) / "litellm"
    python = str(folder / "bin" / "python")
    install("litellm", sys.executable, "-m", "venv", "--without-pip", str(folder))
    # make passes PIP_ARGS on.
    flags = ("--python", python, "install", "-q", *shlex.split(os.environ.get("PIP_ARGS", "")))
    install("litellm", sys.executable, "-m", "pip", *flags, *LITELLM)
    return python
