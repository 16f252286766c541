"""The requests that the notes show, as curl sends them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from serving_app import FakeServer
from starlette.testclient import TestClient

FORM = {"Content-Type": "application/x-www-form-urlencoded"}  # of curl -d without a header
JSON = {"Content-Type": "application/json"}
GENERATE = '{"prompt": "San Francisco is a", "use_beam_search": true, "n": 4, "temperature": 0}'
COMPLETION = '{\n  "model": "fake", "prompt": "San Francisco is a", "max_tokens": 7, "temperature": 0}'
CHAT = """{
  "model": "fake", "messages": [{"role": "system", "content": "You are a helpful assistant."},
  {"role": "user", "content": "What is 2 + 3?"}],
  "stream": true, "max_tokens": 2000}"""


@pytest.fixture
def server() -> FakeServer:
    return FakeServer.of()


@pytest.fixture
def client(server: FakeServer) -> TestClient:
    return server.client


def curl(client: TestClient, path: str, data: str, headers: dict[str, str]) -> Any:
    return client.post(path, content=data, headers={**headers, "User-Agent": "curl/8.5.0", "Accept": "*/*"})


def test_models(client: TestClient) -> None:
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["fake"]


def test_a_chat_streams_and_may_ask_for_more_than_fits(server: FakeServer) -> None:
    text = curl(server.client, "/v1/chat/completions", CHAT, JSON).text
    assert text.startswith("data: ") and text.endswith("data: [DONE]\n\n")
    assert server.engine.requests[0].params.max_tokens == 2000  # the engine cuts it, as its own tests show


@pytest.mark.parametrize("headers", [JSON, FORM, {}])
def test_a_completion(client: TestClient, headers: dict[str, str]) -> None:
    answer = curl(client, "/v1/completions", COMPLETION, headers)
    assert answer.json()["choices"][0]["text"] == "Hello world"


def test_beams_are_refused_by_name(client: TestClient) -> None:
    answer = curl(client, "/generate", GENERATE, FORM)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (
        400,
        "beam_search_unsupported",
        "use_beam_search",
    )
    assert "n sampled choices" in error["message"]
    wanted = json.loads(GENERATE)
    del wanted["use_beam_search"]
    answer = curl(client, "/generate", json.dumps(wanted), FORM)
    assert answer.json() == {"text": ["San Francisco is aHello world"] * 4}


def test_a_page_elsewhere_cannot_send_forms(client: TestClient) -> None:
    headers = {**FORM, "Origin": "https://elsewhere.example"}
    answer = curl(client, "/v1/completions", COMPLETION, headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
    allowing = FakeServer.of(allowed_origins=(headers["Origin"],)).client
    answer = curl(allowing, "/v1/completions", COMPLETION, headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
