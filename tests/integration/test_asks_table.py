"""The table of what users ask of plugin systems: complete, and every test that it names is collected."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "asks.md"
ROW = re.compile(r"^\| (A\d+) \| (.+?) \| (.+?) \|$", re.MULTILINE)
NUMBERS = [f"A{index}" for index in range(1, 16)]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
REASONS = ("not yet: ", "not: ")


def rows() -> list[tuple[str, str, str]]:
    """The rows of both tables: number, ask, threads; then number, answer, proof."""
    return ROW.findall(PAGE.read_text(encoding="utf-8"))


def named_tests() -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return sorted({f"{path}::{name}" for path, name in TEST.findall(text)})


def test_every_ask_is_listed_and_answered() -> None:
    assert [number for number, *_ in rows()] == NUMBERS + NUMBERS


@pytest.mark.parametrize("number", NUMBERS)
def test_every_answer_names_a_test_or_a_reason(number: str) -> None:
    (_, _, threads), (_, _, proof) = (row for row in rows() if row[0] == number)
    assert "#" in threads
    assert TEST.search(proof) or proof.startswith(REASONS), f"{number}: {proof}"


def test_every_named_test_is_collected() -> None:
    names = named_tests()
    assert len(names) >= 20
    files = sorted({name.partition("::")[0] for name in names})
    missing = [file for file in files if not (ROOT / file).exists()]
    assert not missing, f"the table names files that do not exist: {missing}"
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-2000:]
    collected = {line.partition("[")[0].strip() for line in result.stdout.splitlines() if "::" in line}
    assert not [name for name in names if name not in collected]
