"""litellm against a live server."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from server_process import ServerProcess

KEY = "a-key-of-the-test"
pytestmark = pytest.mark.web


def test_litellm(litellm_python: str, capitals: tuple[str, ...]) -> None:
    script = Path(__file__).with_name("litellm_script.py")
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    with ServerProcess("--api-key", KEY, *capitals) as server:
        run = subprocess.run(
            [litellm_python, str(script), server.url, KEY],
            capture_output=True, text=True, timeout=120, check=False, env=environment,
        )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["models"] == ["tiny"]
    assert found["texts"] == [found["streamed"]] * 2 and found["streamed"]
    assert found["logprobs"] == [2] * found["usage"] and found["usage"] == 2 * found["streamed_usage"] > 0
    assert found["stopped"] == found["streamed"].split(found["stop"])[0]
    assert found["completions"] == [found["streamed_completion"]] * 2 == [found["completion_tokens"]] * 2
    assert found["streamed_completion"]
    assert found["tool_finish"] == "tool_calls"
    assert found["tool"] == found["streamed_tool"] == {"name": "capital_of", "country": "France"}
    assert found["told_of_result"] > 5
    assert "France" in found["untold"]["text"] and not found["untold"]["calls"]
    failures = {
        "unknown_model": ("NotFoundError", 404, "does not exist"),
        "bad_key": ("AuthenticationError", 401, "API key"),
        "bad_value": ("BadRequestError", 400, "temperature"),
        "forced_tool": ("BadRequestError", 400, "tool_choice='required' is not served"),
    }
    for name, (kind, status, text) in failures.items():
        assert (found[name]["name"], found[name]["status"]) == (kind, status)
        assert text in found[name]["text"]
