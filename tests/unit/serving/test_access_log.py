"""The access log: one line of JSON a request, with what the engine did, and nothing that clients keep secret."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import FakeEngine
from serving_app import FakeServer

SECRET = "the prompt nobody may read"  # no password: looked for in logs


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """Gives the lines so far."""
    logger = logging.getLogger("quire.access")
    logging.getLogger("quire").propagate = logger.propagate = True
    caplog.set_level(logging.INFO, "quire.access")

    def read() -> list[dict[str, Any]]:
        texts = [record.getMessage() for record in caplog.records if record.name == "quire.access"]
        assert all(text.isascii() and text.isprintable() for text in texts)
        return [json.loads(text) for text in texts]

    yield read


def test_a_line_tells_tokens_and_the_first_ones_time(lines: Any) -> None:
    server = FakeServer.of(FakeEngine(["one", "two", "three"]), access_log=True, api_key=("sesame",))
    headers = {"Authorization": "Bearer sesame", "X-Request-Id": "mine-1"}
    for path, body in (
        ("/v1/completions", {"model": "fake", "prompt": ["ab", SECRET], "n": 2}),
        (
            "/v1/chat/completions",
            {"model": "fake", "messages": [{"role": "user", "content": SECRET}], "stream": True},
        ),
        ("/v1/responses", {"model": "fake", "input": SECRET}),
        ("/generate", {"prompt": SECRET}),
    ):
        answer = server.client.post(f"{path}?key={SECRET}", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        line = lines()[-1]
        assert (line["method"], line["path"], line["route"], line["status"]) == ("POST", path, path, 200)
        assert line["request_id"] == answer.headers["x-request-id"]
        assert line["client_request_id"] == "mine-1" == answer.headers["x-client-request-id"]
        assert line["output_tokens"] == (12 if path == "/v1/completions" else 3)
        assert line["prompt_tokens"] >= len(SECRET)
        assert 0 < line["first_token_s"] <= line["seconds"] < 5
    assert len(lines()) == 4
    everything = json.dumps(lines())
    assert SECRET not in everything and "sesame" not in everything and "three" not in everything


def test_requests_that_generate_nothing_have_no_tokens(lines: Any) -> None:
    server = FakeServer.of(access_log=True)
    server.client.get("/health")
    server.client.post("/v1/completions", json={"model": "other", "prompt": SECRET})
    assert [line["status"] for line in lines()] == [200, 404]
    assert not any("output_tokens" in line for line in lines())
    assert [line["client_request_id"] for line in lines()] == [None, None]


@pytest.mark.parametrize(
    "path",
    [
        "/a%0A%7B%22status%22:200%7D",
        "/%1B%5B2J",
        "/%C2%9B31m",
        "/%E2%80%A8x",
        "/%FF%FE",
        "/%7F",
        "/" + "x" * 5000,
    ],
)
def test_no_path_forges_a_line(lines: Any, path: str) -> None:
    FakeServer.of(access_log=True).client.get(path)
    [line] = lines()  # read() looks for what is not printable
    assert (line["status"], line["route"]) == (404, None) and len(line["path"]) <= 1000


@pytest.mark.parametrize("given", ["a" * 129, "a b", "x\ty", "ä", 'x"', ""])
def test_ids_that_could_do_harm_are_dropped(lines: Any, given: str) -> None:
    server = FakeServer.of(access_log=True)
    answer = server.client.get("/health", headers={"X-Request-Id": given.encode("latin-1")})  # type: ignore[dict-item]  # bytes are sent as they are
    assert "x-client-request-id" not in answer.headers
    assert lines()[0]["client_request_id"] is None
