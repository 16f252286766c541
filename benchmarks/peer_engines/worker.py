"""Runs one engine and answers one line of JSON per line: load once, then workload after workload.

Started by `peers.py` with the engine's own interpreter, in the folder `benchmarks`:
`python -m peer_engines.worker ENGINE MODEL THREADS [KEY=VALUE ...]`. Asked {"generate": [[prompt, num_outputs], ...],
"shared_prefix": n} it answers {"wall_s": s, "lengths": [...]}; asked {"stream": [prompt, num_outputs]} it
answers {"times_s": [...]}; a failure answers {"error": text}. It ends with its input.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO, cast

from peer_engines.base import EngineFactory, PeerEngine, versions
from workloads import Job

ENGINES = {
    "quire": "quire_engine:QuireEngine",
    "vllm": "vllm_engine:VLLMEngine",
    "llama.cpp": "llama_cpp_engine:LlamaCppEngine",
    "openvino": "openvino_engine:OpenVINOEngine",
    "transformers": "transformers_engine:TransformersEngine",
}


def main() -> None:
    """Load, say so, and answer until the input ends."""
    name, model, num_threads, *pairs = sys.argv[1:]
    answers = _take_output()
    start = time.perf_counter()
    try:
        module, _, attribute = ENGINES[name].partition(":")
        factory = cast(EngineFactory, getattr(importlib.import_module(f"peer_engines.{module}"), attribute))
        engine = factory(Path(model), dict(pair.split("=", 1) for pair in pairs), int(num_threads))
    except Exception as error:
        _say(answers, {"error": _text(error)})
        raise
    loaded = {"load_s": round(time.perf_counter() - start, 2), "versions": versions(factory.packages)}
    _say(answers, loaded)
    for line in sys.stdin:
        try:
            _say(answers, answer(engine, json.loads(line)))
        except Exception as error:
            _say(answers, {"error": _text(error)})
    engine.close()


def answer(engine: PeerEngine, ask: dict[str, Any]) -> dict[str, object]:
    """Do what a line asks."""
    if "stream" in ask:
        return {"times_s": engine.stream(Job(*ask["stream"]))}
    jobs = [Job(prompt, num_outputs) for prompt, num_outputs in ask["generate"]]
    start = time.perf_counter()
    lengths = engine.generate(jobs, ask["shared_prefix"])
    return {"wall_s": time.perf_counter() - start, "lengths": lengths}


def _take_output() -> TextIO:
    """Keep the standard output for answers: what engines print goes to the error output."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _say(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:400]


if __name__ == "__main__":
    main()
