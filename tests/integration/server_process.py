"""A real `quire serve` in a process of its own, and clients that stream from it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import httpx
import psutil

START_LIMIT_S = 60.0


class ServerProcess:
    """`quire serve` on a free port of loopback; ended, with all its children, on leaving.

    Args:
        flags: further flags of the command.
    """

    def __init__(self, *flags: str, model: str = "tiny") -> None:
        command = [sys.executable, "-m", "quire", "serve", model, "--port", "0", *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
        )
        self.lines: list[str] = []
        self.url = ""
        self._is_up = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._is_up.wait(START_LIMIT_S)
        if not self.url:
            self._kill()
            raise AssertionError("the server did not start:\n" + "\n".join(self.lines[-30:]))

    @property
    def pid(self) -> int:
        """Of the API process."""
        return self._process.pid

    def engine_pid(self) -> int:
        """Of the engine process of now."""
        [child] = self.children()
        return child.pid

    def children(self) -> list[psutil.Process]:
        """The API process's living children."""
        try:
            found = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [child for child in found if child.status() != psutil.STATUS_ZOMBIE]

    def num_fds(self) -> int:
        """Open descriptors of the API process."""
        return int(psutil.Process(self.pid).num_fds())

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the API process."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """The exit status, once it has ended."""
        return self._process.wait(timeout_s)

    def wait_ready(self, timeout_s: float = 30.0) -> float:
        """Seconds until /ready said 200."""
        begin = time.monotonic()
        while time.monotonic() - begin < timeout_s:
            if httpx.get(f"{self.url}/ready").status_code == 200:
                return time.monotonic() - begin
            time.sleep(0.05)
        raise AssertionError(f"not ready after {timeout_s} s:\n" + "\n".join(self.lines[-30:]))

    def metrics(self) -> dict[str, float]:
        """Figures without labels but the model's and the engine's, by name."""
        text = httpx.get(f"{self.url}/metrics").text
        found = re.findall(
            r'^([\w:]+)(?:\{(?:,?(?:model_name|engine)="[^"]*")+\})? ([-+.\deE]+)$', text, re.MULTILINE
        )
        return {name: float(value) for name, value in found}

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    def _kill(self) -> None:
        children = self.children()
        self._process.kill()
        self._process.wait()
        for child in children:
            if child.is_running():
                child.kill()
        self._reader.join(5)

    def _read(self) -> None:
        stream = self._process.stderr
        if stream is None:
            return
        for line in stream:
            self.lines.append(line.rstrip())
            match = re.search(r"at (http://[\d.]+:\d+)", line)
            if match and not self.url:
                self.url = match[1]
                self._is_up.set()
        self._is_up.set()


@dataclass(slots=True)
class Answer:
    """What a streaming client got.

    Attributes:
        ends: terminal events: finish reasons, and "error" for an error event.
        is_done: whether [DONE] came last.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    is_done: bool = False
    status: int = 0


async def stream_completion(
    client: httpx.AsyncClient, body: Mapping[str, object], most_events: int | None = None
) -> Answer:
    """Stream a completion; after `most_events` the client goes away."""
    answer, num_events = Answer(), 0
    asked = {**body, "model": "tiny", "stream": True, "return_token_ids": True}
    async with client.stream("POST", "/v1/completions", json=asked) as response:
        answer.status = response.status_code
        if response.status_code != 200:
            await response.aread()
            return answer
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            _take(answer, line.removeprefix("data: "))
            num_events += 1
            if most_events is not None and num_events >= most_events:
                return answer
    return answer


def _take(answer: Answer, data: str) -> None:
    if answer.is_done:
        raise AssertionError(f"something came after [DONE]: {data}")
    if data == "[DONE]":
        answer.is_done = True
        return
    event = json.loads(data)
    if "error" in event:
        answer.ends.append("error")
        return
    choices: Sequence[Mapping[str, object]] = event["choices"]
    for choice in choices:
        answer.text += str(choice["text"])
        answer.token_ids += choice.get("token_ids") or []  # type: ignore[arg-type]  # a list of JSON
        if choice["finish_reason"]:
            answer.ends.append(str(choice["finish_reason"]))
