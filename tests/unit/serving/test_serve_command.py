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
from pathlib import Path

import httpx
import psutil
import pytest

from quire.api.errors import ConfigError
from quire_serving.cli.serve import overlaid
from quire_serving.server import listen
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
    served = Served("--drain-s", "1.5")
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
    assert json.loads(last)["error"]["code"] == "server_draining"
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


def is_caught(process: subprocess.Popen[str]) -> bool:
    """Whether it has a handler of SIGTERM."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    found = re.search(r"SigCgt:\s*(\w+)", status)
    return found is not None and bool(int(found[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("has_engine", [False, True])
def test_a_signal_while_it_starts_ends_it_properly(has_engine: bool) -> None:
    """Before there is an event loop, and while the engine is built in its process."""
    command = [sys.executable, "-m", "quire", "serve", "tiny", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        children: list[psutil.Process] = []
        until_s = time.monotonic() + 30
        while not is_caught(process) or (has_engine and not children):
            assert time.monotonic() < until_s and process.poll() is None
            time.sleep(0.005)
            children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0 and "Traceback" not in errors
        assert not psutil.wait_procs(children, timeout=5)[1]
    finally:
        process.kill()


def refusal(*flags: str) -> str:
    """What the command says to wrong flags, where it says one line and has loaded nothing."""
    command = [sys.executable, "-m", "quire", "serve", "no-such-model", "--port", "0", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr.removeprefix("quire: error: ").strip()


def test_a_busy_port_is_told_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            listen("127.0.0.1", port)
        assert refusal("--port", str(port)) == str(caught.value)
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1 port {port}: Address already in use; "
        "give another --port (0 takes a free one)"
    )


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "::g"])
def test_a_wrong_host_is_told(host: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {host} port 0: [^;]*; give another --host$"):
        listen(host, 0)


def test_files_that_cannot_be_read_are_told_before_the_model_is_loaded(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    assert refusal("--chat-template", missing) == (
        f"chat_template={missing!r} is neither a template nor a readable file: No such file or directory"
    )
    assert refusal("--api-key-file", missing) == (
        f"api_key_file={missing!r} cannot be read: No such file or directory"
    )


def test_flags_win_over_options_and_are_checked() -> None:
    options = ServeSettings(port=9, max_n=3)
    settings = overlaid(options, {"port": 10})
    assert (settings.port, settings.max_n) == (10, 3)
    with pytest.raises(ConfigError, match="--port 70000: .*65535"):
        overlaid(options, {"port": 70000})
