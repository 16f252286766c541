"""EngineThread: where the engine is built, and what becomes of one that cannot be."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import quire.engine.async_llm
from quire.api.errors import ConfigError, EngineClosedError
from quire.engine.async_llm import AsyncLLM
from quire.engine.engine import Engine
from quire.engine.engine_thread import EngineThread


def test_the_engine_is_built_by_the_thread_that_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    build = quire.engine.async_llm.build_engine
    names = []

    def noted(*arguments: Any) -> Engine:
        names.append(threading.current_thread().name)
        return build(*arguments)

    monkeypatch.setattr(quire.engine.async_llm, "build_engine", noted)
    llm = AsyncLLM("tiny", dtype="float32")
    llm.close()
    assert names == ["quire-engine"]  # a second team of OpenMP's halves the speed


def test_an_engine_that_cannot_be_built_refuses_what_was_called_meanwhile() -> None:
    may_fail = threading.Event()

    def build() -> Engine:
        may_fail.wait()
        raise ConfigError("no such thing")

    thread = EngineThread(build, lambda deltas: None, lambda reason: None)
    before = thread.call(lambda engine: 1)
    may_fail.set()
    with pytest.raises(ConfigError, match="no such thing"):
        thread.built()
    with pytest.raises(EngineClosedError):
        before.result(timeout=5)
    with pytest.raises(EngineClosedError):
        thread.call(lambda engine: 1).result(timeout=5)
    thread.close()
