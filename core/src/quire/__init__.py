"""Quire: an LLM inference and serving engine whose every named part is a plugin.

The names below are imported when they are first used; importing `quire` imports no torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quire.api.config import EngineConfig as EngineConfig
    from quire.api.outputs import CompletionOutput as CompletionOutput
    from quire.api.outputs import Logprob as Logprob
    from quire.api.outputs import Metric as Metric
    from quire.api.outputs import RequestMetrics as RequestMetrics
    from quire.api.outputs import RequestOutput as RequestOutput
    from quire.api.request import SamplingParams as SamplingParams
    from quire.engine.async_llm import AsyncLLM as AsyncLLM
    from quire.engine.find_model import find_model as find_model
    from quire.engine.llm import LLM as LLM
    from quire.loading.tokenizer import Tokenizer as Tokenizer

__version__ = "0.1.0"

_HOMES = {
    "AsyncLLM": "quire.engine.async_llm",
    "LLM": "quire.engine.llm",
    "SamplingParams": "quire.api.request",
    "EngineConfig": "quire.api.config",
    "RequestOutput": "quire.api.outputs",
    "CompletionOutput": "quire.api.outputs",
    "Logprob": "quire.api.outputs",
    "Metric": "quire.api.outputs",
    "RequestMetrics": "quire.api.outputs",
    "Tokenizer": "quire.loading.tokenizer",
    "find_model": "quire.engine.find_model",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "EngineConfig",
    "Logprob",
    "Metric",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "Tokenizer",
    "find_model",
]


_SPINS = 5_000_000
"""Some 50 ms, in which threads of OpenMP (GNU's) wait for work before they sleep: longer than a step's planning."""

# Read when torch is loaded. Cores that slept run slowly for a while, on virtual machines most of all.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = str(_SPINS)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'quire' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
