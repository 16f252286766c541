"""The commands that the notes behind this project show, as they stand there but for the model and the port."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from server_process import ServerProcess

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
FLAGS = "--host 0.0.0.0 --tensor-parallel-size 1 --gpu-memory-utilization 0.9 --max-model-len 2048"
MODELS = "curl http://localhost:8000/v1/models"
CHAT = """\
curl -N http://localhost:8000/v1/chat/completions -H "Content-Type: application/json" -d '{
  "model": "tiny", "messages": [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "What is 2 + 3?"}],
  "stream": true, "max_tokens": 2000}'"""  # noqa: E501  # as the notes have it
COMPLETION = """\
curl http://localhost:8000/v1/completions -H "Content-Type: application/json" -d '{
  "model": "tiny", "prompt": "San Francisco is a", "max_tokens": 7, "temperature": 0}'"""
BEAMS = """\
curl http://localhost:8000/generate -d '{"prompt": "San Francisco is a", "use_beam_search": true, "n": 4, "temperature": 0}'"""  # noqa: E501  # as the notes have it


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(*FLAGS.split()) as server:
        yield server


def said(server: ServerProcess, command: str) -> str:
    """What a command prints."""
    command = command.replace("localhost:8000", f"localhost:{server.url.rpartition(':')[2]}")
    run = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    return run.stdout


def test_models(server: ServerProcess) -> None:
    (model,) = json.loads(said(server, MODELS))["data"]
    assert (model["id"], model["max_model_len"]) == ("tiny", 2048)


def test_a_chat_streams_and_asks_for_more_than_the_context_leaves(server: ServerProcess) -> None:
    events = said(server, CHAT).strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events[:-1]]
    assert "".join(choice["delta"].get("content", "") for choice in choices).startswith("2 + 3")
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]


def test_a_completion(server: ServerProcess) -> None:
    answer = json.loads(said(server, COMPLETION))
    assert answer["choices"][0]["text"] and answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 7


def test_beams_are_refused_by_name(server: ServerProcess) -> None:
    error = json.loads(said(server, BEAMS))["error"]
    assert (error["code"], error["param"]) == ("beam_search_unsupported", "use_beam_search")
    answer = json.loads(said(server, BEAMS.replace('"use_beam_search": true, ', "")))
    assert len(answer["text"]) == 4 and all(text.startswith("San Francisco is a") for text in answer["text"])


def test_a_context_that_the_model_has_not_is_refused_with_the_numbers() -> None:
    with pytest.raises(AssertionError, match="max_model_len=8192 .* at most 2048"):
        ServerProcess(*FLAGS.replace("2048", "8192").split())
