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
    assert found["text"] == found["streamed"] != ""
    assert found["usage"] == found["streamed_usage"] > 0
    assert found["completion"] <= 7
    assert found["tool_finish"] == "tool_calls"
    assert found["tool"] == found["streamed_tool"] == {"name": "capital_of", "country": "France"}
    assert (found["unknown_model"], found["bad_key"]) == ("NotFoundError", "AuthenticationError")
