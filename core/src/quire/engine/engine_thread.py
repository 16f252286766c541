"""An engine in a thread of its own: it steps while there is work, and does what it is told between steps."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from quire.api.errors import EngineClosedError
from quire.api.outputs import OutputDelta
from quire.engine.engine import Engine
from quire.execution.progress import PROGRESS

T = TypeVar("T")
_Task = tuple[Callable[[Engine], Any], "Future[Any]"]

logger = logging.getLogger("quire")


class EngineThread:
    """Builds an engine and runs it; nobody else may touch it meanwhile.

    The engine is built where it runs: OpenMP keeps a team of workers for each thread that computes, and two
    teams on the same cores take turns asleep, which makes steps half as fast.

    Args:
        build: called in the thread; the engine is closed when the thread ends.
        deliver: takes what requests got in a step, in the engine's thread. Requests that have ended are
            forgotten before.
        ended: told, in the engine's thread, that no delta will follow, and why: it was closed, or what broke it.

    Attributes:
        built: the engine, or what building it raised. Who stops waiting for it calls `abandon`.
        is_idle: it waits to be called, and has handed out all that there was.
    """

    def __init__(
        self,
        build: Callable[[], Engine],
        deliver: Callable[[list[OutputDelta]], None],
        ended: Callable[[EngineClosedError], None],
    ) -> None:
        self.built: Future[Engine] = Future()
        self.built.set_running_or_notify_cancel()  # who waits for it in an event loop cannot cancel it
        self.is_idle = False
        self._deliver = deliver
        self._ended = ended
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(build,), name="quire-engine", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # Ctrl-C, perhaps: it may have started
            self.abandon()
            raise

    @property
    def closed_error(self) -> EngineClosedError | None:
        """Why calls are refused: it was closed, or what broke it; None while they are not."""
        return self._refusal() if self._is_closed else None

    def call(self, function: Callable[[Engine], T]) -> Future[T]:
        """Have something done with the engine between two steps, in the order of the calls."""
        future: Future[T] = Future()
        with self._lock:
            if self._is_closed:
                future.set_exception(self._refusal())
            else:
                self._tasks.put((function, future))
        return future

    def close(self) -> None:
        """End after the current step and what was called before, and wait for it; idempotent."""
        self.abandon()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def abandon(self) -> None:
        """As `close`, without waiting; while the engine is built, it ends as soon as that is done."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._tasks.put(None)

    def _run(self, build: Callable[[], Engine]) -> None:
        try:
            self._engine = build()
        except BaseException as error:
            self._error = error
            self._refuse_rest()
            self.built.set_exception(error)
            return
        self.built.set_result(self._engine)
        try:
            while self._do_tasks():
                if self._engine.has_unfinished:
                    self._hand_out(self._engine.step())
                    PROGRESS.count += 1
        except BaseException as error:  # an engine recovers from exceptions: this one is broken
            logger.exception("the engine has ended")
            self._error = error
        try:
            self._engine.close(self._error)
        except BaseException:
            logger.exception("closing the engine failed")
        self._refuse_rest()
        self._ended(self._refusal())

    def _do_tasks(self) -> bool:
        """Do what was called for; wait for something where there is no other work. False: close."""
        while True:
            self.is_idle = not self._engine.has_unfinished
            try:
                task = self._tasks.get(block=self.is_idle)
            except queue.Empty:
                return True
            finally:
                self.is_idle = False
            if task is None:
                return False
            self._do(*task)
            PROGRESS.count += 1
            del task  # it holds what the caller gave
            self._hand_out(self._engine.ended_requests())  # a failure between steps may end any

    def _do(self, function: Callable[[Engine], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function(self._engine))
        except Exception as error:
            future.set_exception(error)
        except BaseException as error:
            self._error = error
            future.set_exception(self._refusal())
            raise

    def _hand_out(self, request_ids: Sequence[str]) -> None:
        """Deliver what these requests got, and forget those that have ended."""
        engine = self._engine
        deltas = []
        for request_id in request_ids:
            delta = engine.take_delta(request_id)
            if delta.finished:
                engine.discard(request_id)
            if delta.finished or delta.choices:
                deltas.append(delta)
            PROGRESS.count += 1  # texts of logprobs may take long
        if deltas:
            self._deliver(deltas)

    def _refusal(self) -> EngineClosedError:
        if self._error is None:
            return EngineClosedError("the engine was closed: build a new one")
        error = self._error
        return EngineClosedError(f"the engine broke: {type(error).__name__}: {error}; build a new one")

    def _refuse_rest(self) -> None:
        with self._lock:
            self._is_closed = True
        while not self._tasks.empty():
            task = self._tasks.get()
            if task is not None and task[1].set_running_or_notify_cancel():
                task[1].set_exception(self._refusal())
