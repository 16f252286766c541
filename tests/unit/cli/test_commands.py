"""Commands over a fake engine: input, output, exit status."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from quire.api.errors import PromptError
from quire.api.outputs import CompletionOutput, RequestOutput
from quire.api.request import SamplingParams
from quire.cli import generate
from quire.cli.generate import GenerateCommand, parse_token_ids, read_prompts
from quire.testing.tiny_models import write_tiny_llama


def output(text: str, *, finished: bool = True, error: Exception | None = None) -> RequestOutput:
    return RequestOutput("0", None, [1], [CompletionOutput(0, text, [1])], finished, error=error)


class FakeLLM:
    """Echoes."""

    def __init__(self, chat_template: str | None = "template") -> None:
        self.engine = SimpleNamespace(chat_template=chat_template)
        self.config = SimpleNamespace(model=SimpleNamespace(model="fake", skip_tokenizer_init=False))
        self.error: Exception | None = None

    def __enter__(self) -> FakeLLM:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def get_tokenizer(self) -> SimpleNamespace:
        return SimpleNamespace(chat_template=None)

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> dict[str, str]:
        return {"prompt": "".join(f"<{entry['role']}>{entry['content']}" for entry in messages)}

    def generate(
        self, prompts: Sequence[object], params: SamplingParams, use_tqdm: bool
    ) -> list[RequestOutput]:
        return [
            output(prompt["prompt"] if isinstance(prompt, dict) else str(prompt), error=self.error)
            for prompt in prompts
        ]


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    fake = FakeLLM()
    monkeypatch.setattr(generate, "open_llm", lambda args: fake)
    return fake


def run_generate(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command = GenerateCommand()
    command.add_arguments(parser)
    return command.run(parser.parse_args(list(arguments)))


def test_the_answers_alone_go_to_standard_output(llm: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_generate("--prompt", "a", "--prompt", "b") == 0
    assert capsys.readouterr() == ("<user>a\n<user>b\n", "")


@pytest.mark.parametrize(
    ("flags", "template", "expected"),
    [
        ([], "t", "<user>a"),
        ([], None, "a"),
        (["--raw"], "t", "a"),
        (["--chat"], None, "<user>a"),
        (["--system", "s"], None, "<system>s<user>a"),
    ],
)
def test_the_chat_template_is_the_default_where_there_is_one(
    llm: FakeLLM,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    template: str | None,
    expected: str,
) -> None:
    llm.engine.chat_template = template
    run_generate("--prompt", "a", *flags)
    assert capsys.readouterr().out == f"{expected}\n"


def test_json_is_one_object_a_line(llm: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    run_generate("--prompt", "a", "--prompt", "ü", "--json", "--raw")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["outputs"][0]["text"] for line in lines] == ["a", "ü"]


def test_token_ids_need_no_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_llama(tmp_path)
    flags = ["--model", str(tmp_path), "--skip-tokenizer-init", "--max-tokens", "3", "--ignore-eos"]
    assert run_generate(*flags, "--token-ids", "5, 6 7", "--token-ids", "8") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [len(line.split(",")) for line in lines] == [3, 3]
    assert all(word.isdecimal() for line in lines for word in line.split(","))


@pytest.mark.parametrize(("text", "wrong"), [("1,x", "'x'"), ("-1", "'-1'"), (" ", "'nothing'")])
def test_malformed_token_ids_are_named(text: str, wrong: str) -> None:
    with pytest.raises(PromptError, match=f"numbers separated by commas, not {wrong}"):
        parse_token_ids(text)


def test_a_failed_request_is_status_1(llm: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.error = RuntimeError("logits are not finite")
    assert run_generate("--prompt", "a") == 1
    assert "logits are not finite" in capsys.readouterr().err


def test_prompts_from_files_and_pipes(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    file = request.getfixturevalue("tmp_path") / "prompt.txt"
    file.write_text("two\nlines\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("piped\n"))
    assert read_prompts(argparse.Namespace(prompt=None, prompt_file=[file])) == ["two\nlines"]
    assert read_prompts(argparse.Namespace(prompt=None, prompt_file=None)) == ["piped"]
    monkeypatch.setattr("sys.stdin", io.StringIO("dash\n"))
    assert read_prompts(argparse.Namespace(prompt=["x", "-"], prompt_file=None)) == ["x", "dash"]


def test_no_prompt_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]  # a fake terminal
    monkeypatch.setattr("sys.stdin", terminal)
    with pytest.raises(PromptError, match="--prompt TEXT"):
        read_prompts(argparse.Namespace(prompt=None, prompt_file=None))
