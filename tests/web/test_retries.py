"""Clients that meet a server which is about to end get 503, try again, and are answered by the next one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from server_process import ServerProcess

HERE = Path(__file__).parent
LONG = {"model": "tiny", "prompt": "San", "max_tokens": 2000, "ignore_eos": True, "stream": True}
pytestmark = pytest.mark.web


@pytest.fixture(params=["python", "npm", "litellm"])
def command(request: pytest.FixtureRequest) -> list[str]:
    """Of a client; its arguments are the server's URL and a key."""
    if request.param == "python":
        return [sys.executable, str(HERE / "retry_openai.py")]
    if request.param == "npm":
        folder = request.getfixturevalue("npm_folder")
        return ["node", shutil.copy(HERE / "retry_openai.mjs", folder)]
    return [request.getfixturevalue("litellm_python"), str(HERE / "retry_litellm.py")]


def test_a_client_outlives_a_restart(command: list[str]) -> None:
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with ServerProcess("--drain-s", "60") as server, ThreadPoolExecutor() as pool:
        client = subprocess.Popen(
            [*command, server.url, "none"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        try:
            assert client.stdout is not None and client.stdout.readline() == "ready\n"
            with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG, timeout=60):
                server.signal(signal.SIGTERM)
                wait_until(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
                said = pool.submit(client.communicate, "go\n", timeout=120)
                wait_until(lambda: any(was_refused(line) for line in list(server.lines)))
            assert server.wait(30) == 0
            with ServerProcess("--port", server.url.rpartition(":")[2]):
                assert said.result()[0].strip() == "c-a-t"
        finally:
            client.kill()


def was_refused(line: str) -> bool:
    """Whether a line of the access log is of a chat that got 503."""
    if not line.startswith("{"):
        return False
    entry = json.loads(line)
    return bool(entry["status"] == 503 and entry["path"] == "/v1/chat/completions")


def wait_until(is_true: Callable[[], bool]) -> None:
    """Until it is; a client may need seconds for its first request."""
    limit_s = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < limit_s
        time.sleep(0.05)
