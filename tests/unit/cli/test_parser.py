"""What a wrong command line is told, and a short usage."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from quire.cli.main import build_parser, main
from quire.cli.parser import Parser
from quire.plugins import PluginHost

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bench"], "quire bench: error: the following arguments are required: KIND"),
        (["bench", "serve", "--num-promts", "5"], "unknown: --num-promts 5 (did you mean --num-prompts?)"),
        (["bench", "serve", "--port", "70000"], "argument --port: 70000 is out of bounds: give 1 to 65535"),
        (
            ["serve", "tiny", "--max-model-length=5"],
            "(did you mean --max-model-len?); see `quire serve --help`",
        ),
        (["serve", "tiny", "more"], "quire serve: error: unknown: more;"),
        (["run-batch"], "-i/--input-file"),
        (["nope"], "invalid choice: 'nope'"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and said in error and len(error.splitlines()) == 1


def test_debug_is_a_flag_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--base-url", "nowhere", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("num_flags", "usage"), [(2, "[--f0] [--f1] -o O [M]"), (20, "[flags] -o O [M]")])
def test_usage_leaves_many_flags_out_but_those_that_are_needed(num_flags: int, usage: str) -> None:
    parser = Parser(prog="p", add_help=False)
    for number in range(num_flags):
        parser.add_argument(f"--f{number}", action="store_true")
    parser.add_argument("-o", required=True)
    parser.add_argument("m", nargs="?", metavar="M")
    assert parser.format_usage().split("usage: p ")[1].strip() == usage


@pytest.mark.parametrize("words", [[], ["serve"], ["run-batch"], ["bench", "serve"], ["chat"]])
def test_help_fits_80_columns(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: quire") and max(len(line) for line in text.splitlines()) <= 80
    assert main([*words, "--help=all"]) == 0
    assert capsys.readouterr().out == text


def test_commands_in_the_documentation() -> None:
    text = (ROOT / "docs" / "how-to" / "talk-to-a-server.md").read_text()
    text += (ROOT / "plugins" / "serving" / "README.md").read_text()
    parser, _ = build_parser(PluginHost.discover(strict=False), ["chat", "complete", "run-batch", "bench"])
    commands = re.findall(r"(?m)^\$ (?:.*\| )?quire ((?!serve).*)$", text)
    assert len(commands) > 7
    for command in commands:
        parser.parse_args(shlex.split(command, comments=True))
