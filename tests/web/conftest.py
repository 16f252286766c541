"""What the tests of clients share: where clients are, and a parser of tool calls for what `tiny` can say."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = "openai@6"
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
    return [ToolParserSpec("capitals", "capitals_parser:Capitals")]


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
    metadata = folder / "quire_capitals-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "capitals_parser.py").write_text(PARSER)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: quire-capitals\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[quire]\ncapitals = capitals_parser\n")
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return ("--tool-call-parser", "capitals")


@pytest.fixture(scope="session")
def npm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which Node finds the client."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node and npm here")
    folder = tmp_path_factory.mktemp("npm")
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), PACKAGE]
    installed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if installed.returncode:
        pytest.skip(f"npm cannot install {PACKAGE}: {installed.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.fixture(scope="session")
def litellm_python() -> str:
    """A Python that has litellm, and mcp, which it imports for tools. They stay out of the project's environment."""
    if path := os.environ.get("LITELLM_PYTHON"):
        return path
    if importlib.util.find_spec("litellm") is None:
        pytest.skip("litellm is not installed, and LITELLM_PYTHON names no Python that has it and mcp")
    return sys.executable
