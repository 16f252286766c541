"""EngineThread: where the engine is built, and what becomes of one that cannot be."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest

from quire import SamplingParams
from quire.api.errors import ConfigError, EngineClosedError
from quire.engine.async_llm import AsyncLLM
from quire.engine.build import build_engine
from quire.engine.engine import Engine
from quire.engine.engine_thread import EngineThread


def test_the_engine_is_built_by_the_thread_that_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []

    def noted(*arguments: Any) -> Engine:
        names.append(threading.current_thread().name)
        return build_engine(*arguments)

    monkeypatch.setattr("quire.engine.async_llm.build_engine", noted)
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
        thread.built.result()
    with pytest.raises(EngineClosedError):
        before.result(timeout=5)
    with pytest.raises(EngineClosedError):
        thread.call(lambda engine: 1).result(timeout=5)
    thread.close()


def test_an_interrupt_while_the_engine_is_built_leaves_nothing_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[threading.Thread] = []
    may_go_on, is_closed = threading.Event(), threading.Event()

    class Built:
        has_unfinished = False

        def close(self, error: BaseException | None = None) -> None:
            is_closed.set()

    def build(*arguments: Any) -> Built:
        threads.append(threading.current_thread())
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        may_go_on.wait(timeout=20)
        return Built()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's workers ignore it
    monkeypatch.setattr("quire.engine.async_llm.build_engine", build)
    try:
        with pytest.raises(KeyboardInterrupt):
            AsyncLLM("tiny")
    finally:
        signal.signal(signal.SIGINT, before)
        may_go_on.set()
    threads[0].join(timeout=5)
    assert is_closed.is_set() and not threads[0].is_alive()


def test_a_thread_is_idle_only_once_everything_is_handed_out() -> None:
    delivering, may_go_on = threading.Event(), threading.Event()
    llm = AsyncLLM("tiny", dtype="float32")
    try:
        thread = llm._thread
        params = SamplingParams(max_tokens=1, detokenize=False)

        def deliver(deltas: object) -> None:
            delivering.set()
            may_go_on.wait(timeout=20)

        thread._deliver = deliver
        thread.call(lambda engine: engine.add_request([5], params)).result(timeout=20)
        assert delivering.wait(timeout=20)
        assert not thread.is_idle  # though the engine has no request any more
        may_go_on.set()
        deadline = time.monotonic() + 20
        while not thread.is_idle:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        may_go_on.set()
        llm.close()
