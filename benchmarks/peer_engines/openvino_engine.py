"""OpenVINO GenAI's continuous batching pipeline."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peer_engines.base import MAX_NUM_SEQS, Options
from workloads import Job


class OpenVINOEngine:
    """Options: model (a folder with the model in OpenVINO's format; required), kv_gb (2), hint (bf16).

    `optimum-cli export openvino` converts a checkpoint.
    """

    packages = ("openvino", "openvino-genai")

    def __init__(self, model: Path, options: Options, num_threads: int) -> None:
        if "model" not in options:
            raise ValueError("give the converted model: --option openvino.model=FOLDER")
        self._openvino: Any = importlib.import_module("openvino")  # installed in its own environment only
        self._genai: Any = importlib.import_module("openvino_genai")
        scheduler = self._genai.SchedulerConfig()
        scheduler.cache_size = int(options.get("kv_gb", "2"))
        scheduler.max_num_batched_tokens = 2048
        scheduler.max_num_seqs = MAX_NUM_SEQS
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = True
        properties = {
            "INFERENCE_NUM_THREADS": num_threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": options.get("hint", "bf16"),
        }
        self._pipeline = self._genai.ContinuousBatchingPipeline(
            options["model"], scheduler, "CPU", properties
        )
        self._num_requests = 0

    def generate(self, jobs: Sequence[Job], shared_prefix: int) -> list[int]:
        """See PeerEngine."""
        handles = [self._add(job) for job in jobs]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return [len(handle.read_all()[0].generated_ids) for handle in handles]

    def stream(self, job: Job) -> list[float]:
        """See PeerEngine."""
        times: list[float] = []
        start = time.perf_counter()
        handle = self._add(job)
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            now = time.perf_counter() - start
            while handle.can_read():
                for output in handle.read().values():
                    times += [now] * len(output.generated_ids)
        return times

    def close(self) -> None:
        """See PeerEngine."""
        del self._pipeline

    def _add(self, job: Job) -> Any:
        config = self._genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = job.num_outputs
        config.ignore_eos, config.do_sample = True, False
        self._num_requests += 1
        ids = self._openvino.Tensor(np.array([job.prompt], dtype=np.int64))
        return self._pipeline.add_request(self._num_requests, ids, config)
