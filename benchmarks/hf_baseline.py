"""transformers.generate with padded batches on the same jobs, as a baseline in the same run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from workloads import Job

PAD_ID = 1


class HFBaseline:
    """A model of transformers; jobs are batched by output length, kinder than arrival order would be."""

    def __init__(self, model: Path, device: str = "cpu", batch_size: int = 16) -> None:
        from transformers import AutoModelForCausalLM

        loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        self.model = loaded.to(device).eval()
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = PAD_ID
        self.device = device
        self.batch_size = batch_size

    def run(self, jobs: Sequence[Job]) -> float:
        """Run all jobs; the wall time in seconds."""
        ordered = sorted(jobs, key=lambda job: (job.num_outputs, len(job.prompt)))
        start = time.perf_counter()
        for first in range(0, len(ordered), self.batch_size):
            self._run_batch(ordered[first : first + self.batch_size])
        return time.perf_counter() - start

    def _run_batch(self, jobs: Sequence[Job]) -> None:
        width = max(len(job.prompt) for job in jobs)
        ids = torch.full((len(jobs), width), PAD_ID, device=self.device)
        mask = torch.zeros_like(ids)
        for row, job in enumerate(jobs):
            ids[row, width - len(job.prompt) :] = torch.tensor(job.prompt)
            mask[row, width - len(job.prompt) :] = 1
        length = max(job.num_outputs for job in jobs)
        with torch.inference_mode():
            self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=length, do_sample=False)
