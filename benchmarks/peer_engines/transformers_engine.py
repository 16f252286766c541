"""transformers: `generate` over padded batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_baseline import HFBaseline
from peer_engines.base import Options
from workloads import Job


class TransformersEngine:
    """Options: batch_size (16)."""

    packages = ("transformers", "torch")

    def __init__(self, model: Path, options: Options, num_threads: int) -> None:
        import torch

        torch.set_num_threads(num_threads)
        self._torch = torch
        self._baseline = HFBaseline(model, batch_size=int(options.get("batch_size", "16")))

    def generate(self, jobs: Sequence[Job], shared_prefix: int) -> list[int]:
        """See PeerEngine; every job of a batch runs as long as the batch's longest."""
        self._baseline.run(jobs)
        return [job.num_outputs for job in jobs]

    def stream(self, job: Job) -> list[float]:
        """See PeerEngine."""
        ids = self._torch.tensor([job.prompt])
        clock = _Clock()
        with self._torch.inference_mode():
            self._baseline.model.generate(
                input_ids=ids,
                attention_mask=self._torch.ones_like(ids),
                max_new_tokens=job.num_outputs,
                do_sample=False,
                streamer=clock,
            )
        return clock.times

    def close(self) -> None:
        """See PeerEngine."""
        del self._baseline


class _Clock:
    """A streamer that notes when tokens come; it is given the prompt first."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._start = time.perf_counter()
        self._has_prompt = False

    def put(self, value: Any) -> None:
        if self._has_prompt:
            self.times.append(time.perf_counter() - self._start)
        self._has_prompt = True

    def end(self) -> None:
        pass
