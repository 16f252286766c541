"""llama.cpp by the functions of llama-cpp-python, with a loop of continuous batching as its server has."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from peer_engines.base import Options
from peer_engines.gguf_file import write_gguf
from workloads import Job

_MAX_SEQUENCES = 32
_BATCH = 2048


@dataclass(slots=True)
class _Row:
    """A token of a batch; `owner` wants the logits after it, None: nobody does."""

    token: int
    position: int
    sequence: int
    owner: _Running | None = None


@dataclass(slots=True, eq=False)
class _Running:
    """A job in a sequence: how many of its tokens are known, and what it has got."""

    job: Job
    sequence: int
    num_known: int
    outputs: list[int] = field(default_factory=list)


class LlamaCppEngine:
    """Options: model (a GGUF file; by default one is written beside the checkpoint), slots (16), n_ctx (16384).

    `slots`: jobs at a time, where they share nothing; more were slower in trials.
    """

    packages = ("llama-cpp-python", "gguf", "numpy")

    def __init__(self, model: Path, options: Options, num_threads: int) -> None:
        self._lib: Any = importlib.import_module("llama_cpp")  # installed in its own environment only
        file = Path(options.get("model", str(model / "bf16.gguf")))
        if not file.exists():
            write_gguf(model, file)
        self._silent = self._lib.llama_log_callback(lambda *_: None)
        self._lib.llama_log_set(self._silent, None)
        self._lib.llama_backend_init()
        self._model = self._lib.llama_model_load_from_file(
            str(file).encode(), self._lib.llama_model_default_params()
        )
        params = self._lib.llama_context_default_params()
        params.n_ctx = int(options.get("n_ctx", "16384"))
        params.n_batch, params.n_ubatch, params.n_seq_max = _BATCH, 512, _MAX_SEQUENCES
        params.n_threads = params.n_threads_batch = num_threads
        params.kv_unified = True
        self._context = self._lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp made no context for {file}")
        self._vocab = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model))
        self._batch = self._lib.llama_batch_init(_BATCH, 0, 1)
        self._memory = self._lib.llama_get_memory(self._context)
        self._slots = int(options.get("slots", "16"))

    def generate(self, jobs: Sequence[Job], shared_prefix: int) -> list[int]:
        """See PeerEngine; a shared prefix is computed once and copied to all sequences, as its examples do."""
        self._lib.llama_memory_clear(self._memory, False)
        slots = self._slots
        if shared_prefix:
            slots = len(jobs)
            self._prefill(jobs[0].prompt[:shared_prefix])
            for sequence in range(1, slots):
                self._lib.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)
        waiting = [_Running(job, -1, shared_prefix) for job in jobs]
        everyone, free, running = list(waiting), list(range(slots)), list[_Running]()
        while waiting or running:
            while waiting and free:
                waiting[0].sequence = free.pop(0)
                running.append(waiting.pop(0))
            for ended in self._step(running):
                running.remove(ended)
                self._lib.llama_memory_seq_rm(self._memory, ended.sequence, -1, -1)
                free.append(ended.sequence)
        return [len(each.outputs) for each in everyone]

    def stream(self, job: Job) -> list[float]:
        """See PeerEngine."""
        self._lib.llama_memory_clear(self._memory, False)
        only, times = _Running(job, 0, 0), list[float]()
        start = time.perf_counter()
        is_ended = False
        while not is_ended:
            is_ended = bool(self._step([only]))
            times += [time.perf_counter() - start] * (len(only.outputs) - len(times))
        return times

    def close(self) -> None:
        """See PeerEngine."""
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def _prefill(self, tokens: Sequence[int]) -> None:
        rows = [_Row(token, position, 0) for position, token in enumerate(tokens)]
        for first in range(0, len(rows), _BATCH):
            self._decode(rows[first : first + _BATCH])

    def _step(self, running: Sequence[_Running]) -> list[_Running]:
        """One batch: a token of each that decodes, then as much of the prompts as fits; who has ended."""
        rows = [
            _Row(each.outputs[-1], each.num_known, each.sequence, each) for each in running if each.outputs
        ]
        for each in running:
            if not each.outputs:
                end = min(len(each.job.prompt), each.num_known + _BATCH - len(rows))
                for position in range(each.num_known, end):
                    is_last = position == len(each.job.prompt) - 1
                    owner = each if is_last else None
                    rows.append(_Row(each.job.prompt[position], position, each.sequence, owner))
                each.num_known = end
            else:
                each.num_known += 1
        self._decode(rows)
        ended = []
        for index, row in enumerate(rows):
            if row.owner is not None:
                logits = self._lib.llama_get_logits_ith(self._context, index)
                row.owner.outputs.append(int(np.ctypeslib.as_array(logits, shape=(self._vocab,)).argmax()))
                if len(row.owner.outputs) == row.owner.job.num_outputs:
                    ended.append(row.owner)
        return ended

    def _decode(self, rows: Sequence[_Row]) -> None:
        batch = self._batch
        for index, row in enumerate(rows):
            batch.token[index], batch.pos[index] = row.token, row.position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row.sequence
            batch.logits[index] = row.owner is not None
        batch.n_tokens = len(rows)
        status = self._lib.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode gave {status}")
