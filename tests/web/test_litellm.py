"""litellm against a live server. Its many packages stay out of the project's environment: LITELLM_PYTHON names one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import ServerProcess

HAS_OWN = importlib.util.find_spec("litellm") is not None
PYTHON = os.environ.get("LITELLM_PYTHON", sys.executable if HAS_OWN else "")
KEY = "a-key-of-the-test"
pytestmark = [
    pytest.mark.web,
    pytest.mark.skipif(
        not PYTHON, reason="litellm is not installed, and LITELLM_PYTHON names no Python that has it"
    ),
]


def test_litellm() -> None:
    script = Path(__file__).with_name("litellm_script.py")
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    with ServerProcess("--api-key", KEY) as server:
        run = subprocess.run(
            [PYTHON, str(script), server.url, KEY],
            capture_output=True, text=True, timeout=120, check=False, env=environment,
        )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["text"] == found["streamed"] != ""
    assert found["usage"] == found["streamed_usage"] > 0
    assert found["completion"] <= 7
    assert (found["unknown_model"], found["bad_key"]) == ("NotFoundError", "AuthenticationError")
