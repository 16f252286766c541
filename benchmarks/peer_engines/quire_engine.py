"""Quire in a process of its own, as its peers are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import quire  # before torch: it sets how torch's threads wait
from peer_engines.base import MAX_MODEL_LEN, MAX_NUM_SEQS, Options
from workloads import Job


class QuireEngine:
    """Options: any keyword of `LLM`, numbers and true/false parsed."""

    packages = ("quire-core", "quire-kernels", "torch")

    def __init__(self, model: Path, options: Options, num_threads: int) -> None:
        import torch

        torch.set_num_threads(num_threads)
        settings: dict[str, Any] = {
            "dtype": "bfloat16",
            "skip_tokenizer_init": True,
            "max_num_seqs": MAX_NUM_SEQS,
            "max_model_len": MAX_MODEL_LEN,
            **{key: _parsed(value) for key, value in options.items()},
        }
        self._params = quire.SamplingParams
        self._llm = quire.LLM(str(model), **settings)

    def generate(self, jobs: Sequence[Job], shared_prefix: int) -> list[int]:
        """See PeerEngine."""
        params = [self._greedy(job) for job in jobs]
        outputs = self._llm.generate([job.prompt for job in jobs], params, use_tqdm=False)
        return [len(output.outputs[0].token_ids) for output in outputs]

    def stream(self, job: Job) -> list[float]:
        """See PeerEngine."""
        times: list[float] = []
        start = time.perf_counter()
        for output in self._llm.stream(job.prompt, self._greedy(job)):
            now = time.perf_counter() - start
            times += [now] * (len(output.outputs[0].token_ids) - len(times))
        return times

    def close(self) -> None:
        """See PeerEngine."""
        self._llm.close()

    def _greedy(self, job: Job) -> Any:
        return self._params(temperature=0.0, max_tokens=job.num_outputs, ignore_eos=True, detokenize=False)


def _parsed(value: str) -> object:
    if value in ("true", "false"):
        return value == "true"
    return int(value) if value.lstrip("-").isdigit() else value
