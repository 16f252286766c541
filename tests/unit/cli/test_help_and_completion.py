"""`--help=WORD` and the scripts of `quire completion`."""

from __future__ import annotations

import argparse
import shutil
import subprocess

import pytest

from quire.cli.completion import command_table, script
from quire.cli.help import print_matching, requested_help, subparser_of
from quire.cli.main import main


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quire", add_help=False)
    commands = parser.add_subparsers()
    commands.add_parser("serve", add_help=False).add_argument("--port", help="where to listen")
    bench = commands.add_parser("bench", add_help=False).add_subparsers()
    load = bench.add_parser("load", add_help=False).add_argument_group("Load")
    load.add_argument("--rate", help="how often")
    load.add_argument("--secret", help=argparse.SUPPRESS)
    return parser


def test_the_word_of_a_group_a_flag_or_a_text(
    parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "load", "--help=load"]
    assert requested_help(arguments) == "load" and requested_help(["--help"]) is None
    load = subparser_of(parser, arguments)
    for word in ("load", "--rate", "OFTEN", "all"):
        assert print_matching(load, word) == 0
        assert "--rate" in capsys.readouterr().out
    assert print_matching(load, "secret") == 2
    assert "the groups are: Load" in capsys.readouterr().err


def test_the_table_holds_every_command_and_no_hidden_flag(parser: argparse.ArgumentParser) -> None:
    assert dict(command_table(parser)) == {
        (): ("serve", "bench"),
        ("serve",): ("--port",),
        ("bench",): ("load",),
        ("bench", "load"): ("--rate",),
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("''", "serve bench"),
        ("be", "bench"),
        ("bench lo", "load"),
        ("bench load --r", "--rate"),
        ("serve x --", "--port"),
    ],
)
def test_bash_completes(parser: argparse.ArgumentParser, words: str, expected: str) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    ask = f"\nCOMP_WORDS=(quire {words})\nCOMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n_quire\necho ${{COMPREPLY[@]}}\n"
    result = subprocess.run(
        [bash, "--norc"], input=script(parser, "bash") + ask, capture_output=True, text=True, timeout=20
    )
    assert (result.stdout.strip(), result.stderr) == (expected, "")


@pytest.mark.parametrize(
    ("shell", "line"), [("zsh", '"bench load") names="--rate" ;;'), ("fish", "-a '--rate'")]
)
def test_other_shells_know_the_same(parser: argparse.ArgumentParser, shell: str, line: str) -> None:
    assert line in script(parser, shell)


def test_bash_completes_the_installed_commands(capsys: pytest.CaptureFixture[str]) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    assert main(["completion", "bash"]) == 0
    ask = """
ask() { COMP_WORDS=(quire "$@"); COMP_CWORD=$#; _quire; echo "${COMPREPLY[@]}"; }
ask ser; ask serve tiny --max-mod; ask bench serve --good; ask plugins inf
ask bench latency --num-iters-; complete -p quire
"""
    said = subprocess.run(
        [bash, "--norc"], input=capsys.readouterr().out + ask, capture_output=True, text=True, timeout=20
    )
    expected = ["serve", "--max-model-len", "--goodput", "info", "--num-iters-warmup"]
    assert said.stdout.splitlines() == [*expected, "complete -o default -F _quire quire"] and not said.stderr
