"""`quire serve` as a process: it starts, answers, drains and ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import httpx
import pytest

from quire.api.errors import ConfigError
from quire_serving.cli.serve import overlaid
from quire_serving.settings import ServeSettings

LONG = {"model": "tiny", "prompt": "a", "max_tokens": 1500, "ignore_eos": True, "stream": True}


class Served:
    """A server without an engine process, on a free port."""

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-m", "quire", "serve", "tiny", "--no-engine-process", *flags]
        self.process = subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self.url = ""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if match := re.search(r"serving tiny at (http://\S+), ready in", line):
                self.url = match[1]
                break
        assert self.url, "".join(self.lines)
        self._rest = threading.Thread(
            target=lambda: self.lines.extend(self.process.stderr or ()), daemon=True
        )
        self._rest.start()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._rest.join(5)


@pytest.fixture(scope="module")
def draining() -> Iterator[Served]:
    served = Served("--drain-s", "0.5")
    yield served
    served.end()


def events(lines: Sequence[str]) -> list[str]:
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def test_a_server_answers_drains_and_ends(draining: Served) -> None:
    """In one process, in this order: an answer, a stream that is cut by the drain, refusals, exit 0."""
    asked = {"model": "tiny", "prompt": "San Francisco is a", "max_tokens": 7, "temperature": 0}
    with httpx.Client(base_url=draining.url, timeout=20) as client:
        assert client.post("/v1/completions", json=asked).json()["usage"]["completion_tokens"] == 7
        with client.stream("POST", "/v1/completions", json={**LONG, "n": 8}) as stream:
            lines = stream.iter_lines()
            seen = [next(lines)]
            begin_s = time.monotonic()
            draining.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
            refused = httpx.post(f"{draining.url}/v1/completions", json=asked)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_draining")
            assert refused.headers["retry-after"]
            assert httpx.get(f"{draining.url}/ready").status_code == 503
            assert httpx.get(f"{draining.url}/health").status_code == 200
            seen.extend(lines)
    last = events(seen)[-1]
    assert "error" in json.loads(last)
    assert draining.process.wait(10) == 0
    assert time.monotonic() - begin_s < 8
    assert any("ending 1 requests" in line for line in draining.lines)


def test_a_second_signal_ends_it_at_once() -> None:
    served = Served("--drain-s", "60")
    try:
        with httpx.stream(
            "POST", f"{served.url}/v1/completions", json={**LONG, "n": 8, "temperature": 1}
        ) as stream:
            next(stream.iter_lines())
            served.process.send_signal(signal.SIGINT)
            time.sleep(0.1)
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(2) == 128 + signal.SIGTERM
    finally:
        served.end()


def test_a_busy_port_is_told_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "quire", "serve", "no-such-model", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in done.stderr and "--port" in done.stderr


def test_flags_win_over_options_and_are_checked() -> None:
    options = ServeSettings(port=9, max_n=3)
    settings = overlaid(options, {"port": 10})
    assert (settings.port, settings.max_n) == (10, 3)
    with pytest.raises(ConfigError, match="--port 70000: .*65535"):
        overlaid(options, {"port": 70000})
