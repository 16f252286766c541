"""Every fenced Python example runs; blocks with titles are files of packages, see tests/integration/test_pages.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Title (or "") and code of each block of the language."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [(title, code) for kind, title, code in found if kind == language]


def examples() -> list[object]:
    return [
        pytest.param(code, id=f"{page.relative_to(ROOT)}-{index}")
        for page in PAGES
        for index, (title, code) in enumerate(blocks(page, "python"))
        if not title and not page.match("reference/*")
    ]


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("code", examples())
def test_example_runs(code: str) -> None:
    run(code)


def test_the_readme_example_answers() -> None:
    code = next(code for _, code in blocks(ROOT / "README.md", "python") if "LLM(" in code)
    output = run(code)
    assert len(code.strip().splitlines()) <= 15
    assert "Hello! ->" in output
    assert re.search(r"\d+ steps", output)
