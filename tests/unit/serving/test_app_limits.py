"""What a request may cost, and what the log tells of it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator

import httpx
import pytest
from fake_engine import FakeEngine
from serving_app import state_of
from starlette.testclient import TestClient

from quire_serving.app import create_app


def client_of(**settings: object) -> TestClient:
    return TestClient(create_app(state_of(FakeEngine(), **settings)), raise_server_exceptions=False)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def pieces(total: int) -> Iterator[bytes]:
    for _ in range(total // 512):
        yield b" " * 512


def test_bodies_are_counted_while_they_come() -> None:
    client = client_of(max_body_bytes=4096)
    headers = {"Content-Type": "application/json"}
    assert code_of(client.post("/tokenize", content=b" " * 4097, headers=headers)) == (413, "body_too_large")
    assert code_of(client.post("/tokenize", content=pieces(8192), headers=headers)) == (413, "body_too_large")
    fits = json.dumps({"prompt": "hi"}).encode().ljust(4096)
    assert client.post("/tokenize", content=fits, headers=headers).status_code == 200
    lying = {**headers, "Content-Length": "9" * 15}
    assert code_of(client.post("/tokenize", content=b"{}", headers=lying)) == (413, "body_too_large")


def test_a_body_that_does_not_come_is_given_up() -> None:
    app = create_app(state_of(FakeEngine(), body_timeout_s=0.05))

    async def drip() -> object:
        yield b"{"
        await asyncio.sleep(30)

    async def main() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost"
        ) as client:
            return await client.post("/tokenize", content=drip())  # type: ignore[arg-type]  # an async generator

    assert code_of(asyncio.run(main())) == (408, "body_timeout")


def test_headers_are_bounded() -> None:
    client = client_of()
    many = {f"x-{place}": "1" for place in range(101)}
    assert code_of(client.get("/health", headers=many)) == (431, "headers_too_large")
    assert code_of(client.get("/health", headers={"x-long": "y" * 16_384})) == (431, "headers_too_large")
    assert client.get("/health", headers={"x-long": "y" * 10_000}).status_code == 200


def test_each_request_is_named_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    state = state_of(FakeEngine(), access_log=True)
    seen: list[tuple[str, str, int]] = []
    state.metrics.http = lambda method, route, status, seconds: seen.append((method, route, status))  # type: ignore[method-assign]  # a probe
    client = TestClient(create_app(state), raise_server_exceptions=False)
    logging.getLogger("quire").propagate = logging.getLogger("quire.access").propagate = True
    with caplog.at_level(logging.INFO, "quire.access"):
        answer = client.get("/v1/models/fake", headers={"X-Request-Id": "mine-1"})
        client.get("/nope")
    line = json.loads(caplog.messages[0])
    assert line["request_id"] == answer.headers["x-request-id"] != "mine-1"
    assert answer.headers["x-client-request-id"] == "mine-1"
    assert (line["method"], line["path"], line["status"]) == ("GET", "/v1/models/fake", 200)
    assert json.loads(caplog.messages[1])["status"] == 404
    assert seen == [("GET", "/v1/models/{model:path}", 200), ("GET", "unmatched", 404)]
    for junk in ("a" * 129, "a b", "x\ty"):
        assert "x-client-request-id" not in client.get("/health", headers={"X-Request-Id": junk}).headers
