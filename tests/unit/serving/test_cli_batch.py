"""`quire run-batch`: every line is answered once, over several runs."""

from __future__ import annotations

import json
from pathlib import Path

from fake_openai import fake_openai

from quire.cli.main import main


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
    assert [request["model"] for request in requests] == ["fake", "other", "fake", "fake"]
    assert entries[0]["response"]["body"]["choices"][0]["text"] == "Hi é."
