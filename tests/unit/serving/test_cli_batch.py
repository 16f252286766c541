"""`quire run-batch`: every line is answered once, over several runs."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_openai import fake_openai

from quire.cli.main import main
from quire_serving.cli import batch_client


def line(custom_id: str, *, url: str = "/v1/completions", **body: object) -> str:
    request = {"model": "fake", "prompt": "x", **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": request})


def test_lines_that_fail_are_asked_again_and_others_are_not(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "\n".join([line("a"), "{", line("b", model="other"), line("c", url="/v1/x"), line("a")])
    )
    target.write_text('{"custom_id": "torn", "resp')
    with fake_openai() as (url, requests):
        flags = ["run-batch", "-i", str(source), "-o", str(target), "--url", f"{url}/v1"]
        assert main(flags) == 1
        entries = [json.loads(text) for text in target.read_text().splitlines()]
        status = {entry["custom_id"]: (entry["response"] or {}).get("status_code") for entry in entries}
        assert len(entries) == 5 and status == {"a": 200, "b": 404, "c": None, "line-2": None} | {
            "a": status["a"]
        }
        assert all(entry["error"]["message"] for entry in entries if entry["response"] is None)
        source.write_text("\n".join([line("a"), line("b"), line("d")]))
        assert main(flags) == 0
    entries = [json.loads(text) for text in target.read_text().splitlines()]
    assert sorted(entry["custom_id"] for entry in entries) == ["a", "b", "d"]
    models = [request["model"] for request in requests]
    assert sorted(models[:2]) == ["fake", "other"] and models[2:] == ["fake", "fake"]
    assert entries[0]["response"]["body"]["choices"][0]["text"] == "Hi é."


def test_a_run_that_was_killed_goes_on_where_it_ended(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    names = [f"r{number}" for number in range(30)]
    source.write_text("".join(f"{line(name, prompt=name)}\n" for name in names))
    with fake_openai(delay_s=0.05) as (url, requests):
        flags = ["run-batch", "-i", str(source), "-o", str(target), "--url", url, "--max-concurrency", "2"]
        first = subprocess.Popen([sys.executable, "-m", "quire", *flags], stderr=subprocess.DEVNULL)
        while len(requests) < 8:
            time.sleep(0.01)
        first.kill()
        first.wait()
        written = [json.loads(text)["custom_id"] for text in target.read_bytes().splitlines()]
        with target.open("ab") as file:
            file.write(b'{"id":"batch_req_1","custom_id":"r29","respo')
        num_asked = len(requests)
        assert main(flags) == 0
    assert 5 <= len(written) < 20
    entries = [json.loads(text) for text in target.read_text().splitlines()]
    assert sorted(entry["custom_id"] for entry in entries) == sorted(names)
    again = [request["prompt"] for request in requests[num_asked:]]
    assert sorted(again) == sorted(set(names) - set(written))


def test_a_line_that_cannot_be_sent_is_reported_by_every_run(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join([line("a"), line("a"), line("s", stream=True)]))
    with fake_openai() as (url, requests):
        for _ in range(2):
            flags = ["run-batch", "-i", str(source), "-o", str(target), "--url", url]
            assert main(flags) == 1
            errors = [json.loads(text)["error"] for text in target.read_text().splitlines()]
            messages = sorted(error["message"] for error in errors if error)
            assert len(errors) == 3 and "line 2: the custom_id is taken" in messages[0]
            assert "line 3" in messages[1] and "without stream" in messages[1]
    assert len(requests) == 1


def test_a_busy_server_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_client, "FIRST_WAIT_S", 0.01)
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(line("a"))
    with fake_openai(refusals=[503, 429]) as (url, requests):
        assert main(["run-batch", "-i", str(source), "-o", str(target), "--url", url]) == 0
    assert len(requests) == 3
    with fake_openai(refusals=[503] * 9) as (url, requests):
        target.unlink()
        assert main(["run-batch", "-i", str(source), "-o", str(target), "--url", url]) == 1
    assert json.loads(target.read_text())["response"]["status_code"] == 503
    assert len(requests) == batch_client.MAX_TRIES


def test_standard_input_and_output(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(f"{line('a')}\n".encode())))
    with fake_openai() as (url, _):
        assert main(["run-batch", "-i", "-", "-o", "-", "--url", url]) == 0
    assert json.loads(capfdbinary.readouterr().out)["custom_id"] == "a"


def test_no_server_and_a_wrong_key_are_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(f"{line('a')}\n{line('b')}\n")
    flags = ["run-batch", "-i", str(source), "-o", str(target)]
    assert main([*flags, "--url", "http://127.0.0.1:1"]) == 2
    shown = capsys.readouterr().err
    assert "no answer from http://127.0.0.1:1" in shown and "2 are left: run it again" in shown
    with fake_openai(key="k") as (url, requests):
        assert main([*flags, "--url", url, "--api-key", "x"]) == 2
        assert "the server answered 401: give a key" in capsys.readouterr().err
        assert main([*flags, "--url", url, "--api-key", "k"]) == 0
    assert target.read_text().count("\n") == len(requests) == 2


def test_no_file_is_lost_to_a_wrong_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, other = tmp_path / "in.jsonl", tmp_path / "other.txt"
    source.write_text(f"{line('a')}\n")
    for text in ("a note\n", "a note", '{"a": 1}\n'):
        other.write_text(text)
        assert main(["run-batch", "-i", str(source), "-o", str(other)]) == 2
        assert other.read_text() == text and "more than answers of a batch" in capsys.readouterr().err
    assert main(["run-batch", "-i", str(source), "-o", str(source)]) == 2
    assert source.read_text() and "is the input" in capsys.readouterr().err
    assert main(["run-batch", "-i", str(source), "-o", str(tmp_path / "no" / "o.jsonl")]) == 2
    assert "no/o.jsonl: No such file or directory" in capsys.readouterr().err
