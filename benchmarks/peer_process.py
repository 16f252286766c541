"""An engine in a process of its own, kept alive between the workloads it is asked for."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workloads import Job

FOLDER = Path(__file__).parent
_SPINNING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
"""Settings that may keep a waiting engine's threads busy: engines get their own or their libraries' defaults, which
sleep after milliseconds."""


class PeerError(RuntimeError):
    """An engine did not start, failed at a workload, or died; the text is one line."""


class PeerProcess:
    """One engine; see `peer_engines.worker` for what is said.

    Args:
        name: one of `peer_engines.worker.ENGINES`. python: the interpreter that has the engine.
        model: a checkpoint's folder.
        options: of the engine. num_threads: that it may use.
        timeout_s: for loading, and for each workload.

    Attributes:
        load_s: seconds to load. versions: of the distributions that matter.

    Raises:
        PeerError: it did not load.
    """

    def __init__(
        self,
        name: str,
        python: Path,
        model: Path,
        *,
        options: Mapping[str, str],
        num_threads: int,
        timeout_s: float,
    ) -> None:
        self.name = name
        self._timeout_s = timeout_s
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # closed by close()
        pairs = [f"{key}={value}" for key, value in options.items()]
        environment = {key: value for key, value in os.environ.items() if key not in _SPINNING}
        environment |= {"OMP_NUM_THREADS": str(num_threads), "MKL_NUM_THREADS": str(num_threads)}
        self._process = subprocess.Popen(
            [python, "-m", "peer_engines.worker", name, model.resolve(), str(num_threads), *pairs],
            cwd=FOLDER,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
        )
        try:
            loaded = self._read()
        except PeerError:
            self.close()
            raise
        self.load_s: float = loaded["load_s"]
        self.versions: dict[str, str] = loaded["versions"]

    @property
    def process_id(self) -> int:
        """Of the worker."""
        return self._process.pid

    def generate(self, jobs: Sequence[Job], shared_prefix: int = 0) -> float:
        """Run jobs that arrive together; wall seconds. Raises PeerError, also where lengths are wrong."""
        asked = [[job.prompt, job.num_outputs] for job in jobs]
        answer = self._ask({"generate": asked, "shared_prefix": shared_prefix})
        if answer["lengths"] != [job.num_outputs for job in jobs]:
            raise PeerError(f"{self.name}: outputs of wrong lengths")
        wall_s: float = answer["wall_s"]
        return wall_s

    def stream(self, job: Job) -> list[float]:
        """Run one job; seconds from submission to each token. Raises PeerError, also where some are missing."""
        times: list[float] = self._ask({"stream": [job.prompt, job.num_outputs]})["times_s"]
        if len(times) != job.num_outputs:
            raise PeerError(f"{self.name}: {len(times)} tokens came, {job.num_outputs} were asked for")
        return times

    def close(self) -> None:
        """End the worker; idempotent."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise PeerError(f"{self.name} has ended: {self._last_words()}") from error
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        watchdog = threading.Timer(self._timeout_s, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            raise PeerError(f"{self.name} ended, or took over {self._timeout_s:g} s: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{self.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"
