"""`quire chat` and `quire complete`: with a server, and over a fake engine."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator, Mapping, Sequence
from types import SimpleNamespace

import pytest
from fake_openai import fake_openai

from quire.api.errors import PromptError, TokenizerError
from quire.api.outputs import CompletionOutput, RequestOutput
from quire.api.request import SamplingParams
from quire.cli.main import main
from quire_serving.cli.chat import Conversation
from quire_serving.cli.talkers import LocalTalker


class FakeLLM:
    """`stream` yields a text in steps."""

    def __init__(self) -> None:
        self.engine = SimpleNamespace(chat_template="template")
        self.config = SimpleNamespace(model=SimpleNamespace(model="fake"))
        self.steps: list[str] = ["Hi", "Hi \ufffd", "Hi é."]
        self.interrupt_at: int | None = None
        self.error: Exception | None = None

    def get_tokenizer(self) -> SimpleNamespace:
        return SimpleNamespace(chat_template=None)

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> dict[str, str]:
        return {"prompt": "".join(f"<{entry['role']}>{entry['content']}" for entry in messages)}

    def stream(self, prompt: object, params: SamplingParams) -> Iterator[RequestOutput]:
        for index, text in enumerate(self.steps):
            if index == self.interrupt_at:
                raise KeyboardInterrupt
            is_last = index == len(self.steps) - 1
            yield RequestOutput("0", None, [1], [CompletionOutput(0, text, [1])], is_last, error=self.error)


@pytest.fixture
def llm() -> FakeLLM:
    return FakeLLM()


def talk(llm: FakeLLM, text: str, monkeypatch: pytest.MonkeyPatch) -> Conversation:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    conversation = Conversation(LocalTalker(llm, SamplingParams()))  # type: ignore[arg-type]  # a fake
    conversation.run()
    return conversation


def test_chat_streams_and_remembers(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation = talk(llm, "one\n\ntwo\n", monkeypatch)
    assert [entry["content"] for entry in conversation.history] == ["one", "Hi é.", "two", "Hi é."]
    assert capsys.readouterr().out == "Hi é.\nHi é.\n"


def test_chat_commands(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation = talk(llm, "one\n/reset\n/what\n/help\n/system be brief\n/exit\nunseen\n", monkeypatch)
    assert (conversation.history, conversation.system) == ([], "be brief")
    error = capsys.readouterr().err
    assert "there is no /what" in error and "/reset" in error


def test_ctrl_c_stops_the_answer_and_not_the_program(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llm.interrupt_at = 1
    conversation = talk(llm, "one\ntwo\n", monkeypatch)
    assert [entry["content"] for entry in conversation.history] == ["one", "Hi", "two", "Hi"]
    assert "(stopped)" in capsys.readouterr().err


@pytest.mark.parametrize("error", [PromptError("too long"), None])
def test_an_error_drops_the_message(
    llm: FakeLLM,
    error: Exception | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(messages: object) -> dict[str, str]:
        raise error or AssertionError

    if error is None:
        llm.error = RuntimeError("too long")
    else:
        monkeypatch.setattr(llm, "chat_prompt", refuse)
    assert talk(llm, "one\n", monkeypatch).history == []
    assert "too long" in capsys.readouterr().err


def test_without_a_chat_template_it_says_what_to_do(llm: FakeLLM) -> None:
    llm.engine.chat_template = None
    stream: Generator[str, None, None] = LocalTalker(llm, SamplingParams()).chat([])  # type: ignore[arg-type]  # a fake
    with pytest.raises(TokenizerError, match="--chat-template FILE"):
        next(stream)


def test_a_server_is_sent_the_conversation_and_the_sampling(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    with fake_openai() as (url, requests):
        flags = [
            "--url",
            f"{url}/v1",
            "--api-key",
            "k",
            "--system",
            "s",
            "--max-tokens",
            "9",
            "--top-p",
            "0.5",
        ]
        assert main(["chat", *flags]) == 0
    assert capsys.readouterr().out == "Hi é.\nHi é.\n"
    assert [entry["content"] for entry in requests[1]["messages"]] == ["s", "one", "Hi é.", "two"]
    sent = requests[0]
    assert (sent["path"], sent["key"], sent["model"]) == ("/v1/chat/completions", "Bearer k", "fake")
    assert (sent["max_tokens"], sent["top_p"]) == (9, 0.5)


def test_quick_questions_and_completions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n\nb\n"))
    with fake_openai() as (url, requests):
        server = ["--url", f"{url}/v1"]
        assert main(["chat", "-q", "hello", *server]) == 0
        assert main(["complete", "once", *server]) == 0
        assert main(["complete", *server]) == 0
        assert main(["complete", "x", "--model-name", "other", *server]) == 2
    assert [request.get("prompt") for request in requests] == [None, "once", "a", "b", "x"]
    captured = capsys.readouterr()
    assert captured.out == "Hi é.\n" * 4
    assert "404: no such model" in captured.err


def test_a_broken_stream_and_a_missing_server_are_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_openai(breaks_off=True) as (url, _):
        assert main(["chat", "-q", "hello", "--url", f"{url}/v1"]) == 2
    assert main(["chat", "-q", "hello", "--url", "http://127.0.0.1:1/v1"]) == 2
    assert main(["chat", "-q", "hello", "--url", "http://127.0.0.1:1/v1", "--model", "tiny"]) == 2
    error = capsys.readouterr().err
    assert "broke off" in error and "quire serve MODEL" in error and "give one of them" in error


def test_a_line_that_is_no_utf8_fails_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("chat", "complete"):
        monkeypatch.setattr("sys.stdin", io.StringIO("\udcff\nok\n"))
        with fake_openai() as (url, _):
            assert main([command, "--url", url]) == 1
        shown = capsys.readouterr()
        assert shown.out == "Hi é.\n" and shown.err == "error: the text is not valid UTF-8\n"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nowhere", "give http://HOST:PORT/v1"),
        ("http://127.0.0.1:99999", "is no URL"),
        ("http://127.0.0.1:1", "no answer from http://127.0.0.1:1/v1"),
    ],
)
def test_a_wrong_url_is_one_line(url: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["chat", "-q", "x"], ["complete", "x"]):
        assert main([*words, "--url", url]) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1


def test_a_wrong_key_is_told_by_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_openai(key="k") as (url, _):
        assert main(["chat", "-q", "x", "--url", url, "--api-key", "x"]) == 2
        assert main(["chat", "-q", "x", "--url", url, "--api-key", "k"]) == 0
    assert "the server answered 401: give a key" in capsys.readouterr().err
