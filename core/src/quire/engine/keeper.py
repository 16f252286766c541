"""Keeps an engine up: watches its process, and follows one that died with the next."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol

from quire.api.commands import EngineProcessOptions
from quire.api.config import EngineConfig
from quire.api.errors import EngineClosedError, QuireError
from quire.engine.child import EngineProcess
from quire.engine.launch import launch
from quire.engine.messages import FromEngine

BACKOFF_S = 0.5
STABLE_S = 30.0
"""An engine that ran so long shows that starting again is worth it, whatever came before."""
STOP_S = 5.0

logger = logging.getLogger("quire")


class EngineUser(Protocol):
    """Whom a keeper tells of its engines."""

    def engine_up(self, engine: EngineProcess) -> None:
        """An engine takes requests."""
        ...

    def take(self, message: FromEngine) -> bool:
        """The engine said something; whether that shows that engines work."""
        ...

    def engine_died(self) -> bool:
        """It is dead; whether it is known what of, and that will not come again."""
        ...

    def ended(self, error: EngineClosedError, *, is_closing: bool) -> None:
        """There will be no engine any more."""
        ...


class Keeper:
    """One engine after the other.

    Attributes:
        engine: the one that is up.
        reason: why none is.
        is_ended: and none will be.
        num_restarts: engines that were started because one before had died.
    """

    def __init__(
        self, config: EngineConfig, options: EngineProcessOptions, fingerprint: str, user: EngineUser
    ) -> None:
        self.engine: EngineProcess | None = None
        self.reason = "the engine starts"
        self.is_ended = False
        self.num_restarts = 0
        self._config = config
        self._options = options
        self._fingerprint = fingerprint
        self._user = user
        self._num_deaths_in_a_row = 0
        self._changed = asyncio.Event()  # an engine is up, or none will be
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False

    async def keep(self, engine: EngineProcess) -> None:
        """From now on see to it that there is an engine; this one is built."""
        self._open(engine)
        self._task = asyncio.create_task(self._run(engine))
        try:
            await asyncio.sleep(0)  # a task that is cancelled before it begins would leave its engine behind
        except BaseException:
            await self.close()
            raise

    async def up(self) -> EngineProcess:
        """The engine, once one is up; raises EngineClosedError where none will be."""
        while self.engine is None:
            self.check_open()
            await self._changed.wait()
        return self.engine

    def check_open(self) -> None:
        """Raise EngineClosedError where no engine will be up any more."""
        if self.is_ended:
            raise EngineClosedError(self.reason)

    async def close(self) -> None:
        """End the engine, hard where this is cancelled; all calls return when it is done."""
        self._end(EngineClosedError("the engine was closed: start a new one"), is_closing=True)
        if self._task is None:
            return
        if not self._is_stopping:
            self._is_stopping = True
            self._task.cancel()
        try:
            await asyncio.wait([self._task])
        except asyncio.CancelledError:
            self._task.cancel()  # the engine is not waited for any more, but killed
            await asyncio.wait([self._task])
            raise

    async def _run(self, engine: EngineProcess | None) -> None:
        try:
            while engine is not None:
                begin = time.monotonic()
                while (message := await engine.receive()) is not None:
                    if self._user.take(message):
                        self._num_deaths_in_a_row = 0
                how = await engine.reap()
                if time.monotonic() - begin > STABLE_S:
                    self._num_deaths_in_a_row = 0
                self._note_death(how)
                engine = await self._next()
        except asyncio.CancelledError:
            if engine is not None:
                await engine.stop(STOP_S)
            raise
        except Exception as error:
            logger.exception("the engine's supervisor failed")
            self._end(EngineClosedError(f"the engine's supervisor failed: {error}"), is_closing=False)
            if engine is not None:
                await engine.reap()

    def _open(self, engine: EngineProcess) -> None:
        engine.note_started()
        self.engine, self.reason = engine, ""
        self._user.engine_up(engine)
        self._changed.set()

    def _note_death(self, how: str) -> None:
        self.engine, self.reason = None, f"the engine died: {how}"
        self._changed.clear()
        logger.error("%s", self.reason)
        self._num_deaths_in_a_row += 1
        if self._user.engine_died():
            self._num_deaths_in_a_row = 0

    async def _next(self) -> EngineProcess | None:
        """An engine after one that died; None: given up."""
        backoff_s = BACKOFF_S
        while self._num_deaths_in_a_row <= self._options.max_restarts:
            begin = time.monotonic()
            self.num_restarts += 1
            try:
                engine, _ = await launch(self._config, self._options, self._fingerprint)
            except (QuireError, OSError) as error:
                self.reason = f"the engine cannot be started again: {error}"
                logger.error("%s", self.reason)
                self._num_deaths_in_a_row += 1
                await asyncio.sleep(backoff_s)
                backoff_s *= 2
                continue
            self._open(engine)
            logger.info("the engine is up again after %.1f s", time.monotonic() - begin)
            return engine
        text = f"the engine was given up after {self._num_deaths_in_a_row} deaths in a row: {self.reason}"
        self._end(EngineClosedError(f"{text}; see its log, and restart the server"), is_closing=False)
        return None

    def _end(self, error: EngineClosedError, *, is_closing: bool) -> None:
        """No engine any more."""
        if not self.is_ended:
            self.is_ended, self.reason = True, str(error)
            logger.log(logging.DEBUG if is_closing else logging.ERROR, "%s", error)
        self.engine = None
        self._user.ended(error, is_closing=is_closing)
        self._changed.set()
