"""The observer of the plugin `step-log`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from quire.api.extensions import EngineObserver, RequestView, StepReport


class StepLog(EngineObserver):
    """Adds lines to a file, which it opens for each: nothing is left open when an engine ends."""

    def __init__(self, path: Path, every: int) -> None:
        self._path = path
        self._every = every
        self._num_steps = 0
        path.parent.mkdir(parents=True, exist_ok=True)

    def step_finished(self, step: StepReport) -> None:
        """Write every n-th step, the first included."""
        if self._num_steps % self._every == 0:
            self._write("step", asdict(step))
        self._num_steps += 1

    def request_finished(self, request: RequestView, finish_reason: str) -> None:
        """Write the end of a request: counts, never its text."""
        counts = {
            "request_id": request.request_id,
            "num_prompt_tokens": request.num_prompt_tokens,
            "num_output_tokens": request.num_output_tokens,
            "num_preemptions": request.num_preemptions,
        }
        self._write("request", {**counts, "finish_reason": finish_reason})

    def _write(self, event: str, fields: dict[str, object]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **fields}) + "\n")
