"""An engine in a process of its own, which is started again when it dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import time
from collections.abc import AsyncGenerator
from dataclasses import replace

from quire.api.client import EngineDescription, EngineRequest, EngineStatus
from quire.api.commands import EngineProcessOptions
from quire.api.config import EngineConfig
from quire.api.errors import ConfigError, EngineClosedError, PromptError, QuireError
from quire.api.outputs import Metric, OutputDelta
from quire.api.request import FinishReason
from quire.engine.child import EngineProcess
from quire.engine.inputs import check_names
from quire.engine.live_request import LiveRequest
from quire.engine.roster import Roster
from quire.engine.totals import Totals
from quire.engine.wire import (
    Abort,
    Call,
    Counters,
    Deltas,
    Forget,
    FromEngine,
    Heartbeat,
    Refused,
    Reply,
    Started,
    StartFailed,
    Stop,
    WireError,
)
from quire.loading.resolve import resolve_model_folder
from quire.loading.tokenizer import Tokenizer
from quire.plugins import PluginHost

BACKOFF_S = 0.5
STABLE_S = 30.0
"""An engine that ran so long shows that starting again is worth it, whatever came before."""
STOP_S = 5.0

logger = logging.getLogger("quire")


class SupervisedEngine:
    """An EngineClient whose engine may die; see `SupervisedEngine.start`. Imports no torch."""

    def __init__(self, config: EngineConfig, options: EngineProcessOptions, fingerprint: str) -> None:
        self._config = config
        self._options = options
        self._fingerprint = fingerprint
        self._tokenizer: Tokenizer | None = None
        self._description: EngineDescription | None = None
        self._engine: EngineProcess | None = None  # the one that is up
        self._reason = "the engine starts"
        self._is_ended = False
        self._roster = Roster()
        self._totals = Totals()
        self._load = (0, 0)
        self._num_restarts = 0
        self._num_deaths_in_a_row = 0
        self._switched: dict[str, bool] = {}
        self._calls: dict[int, asyncio.Future[Reply | None]] = {}
        self._numbers = itertools.count()
        self._seeds = random.Random(config.model.seed)
        self._changed = asyncio.Event()  # an engine is up, or none will be
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, config: EngineConfig, options: EngineProcessOptions) -> SupervisedEngine:
        """Start the process, which builds the engine, and load the tokenizer meanwhile.

        Call it in the program's main thread: the kernel ends the process with the thread that started it.

        Raises:
            QuireError: as `LLM`; nothing stays behind. EngineClosedError: the process died.
        """
        building = asyncio.create_task(EngineProcess.spawn(config, options.watchdog_s))
        try:
            host = await asyncio.to_thread(PluginHost.discover, config.plugins)
            client = cls(config, options, host.fingerprint())
            client._tokenizer = await asyncio.to_thread(_load_tokenizer, config, host)
        except BaseException:
            await (await building).reap()
            raise
        engine = await building
        try:
            client._description = await client._await_start(engine)
        except BaseException:
            await engine.reap()
            raise
        client._open(engine)
        client._task = asyncio.create_task(client._supervise(engine))
        return client

    @property
    def description(self) -> EngineDescription:
        """See EngineClient."""
        if self._description is None:
            raise EngineClosedError("the engine was not started: use SupervisedEngine.start")
        return self._description

    @property
    def tokenizer(self) -> Tokenizer | None:
        """See EngineClient."""
        return self._tokenizer

    @property
    def pid(self) -> int | None:
        """Of the engine's process; None while there is none that is up."""
        return None if self._engine is None else self._engine.pid

    async def stream(self, request: EngineRequest) -> AsyncGenerator[OutputDelta, None]:
        """See EngineClient. A slow reader gets several steps' deltas as one."""
        live = self._admit(request)
        try:
            is_finished = False
            while not is_finished:
                delta = await live.take()
                is_finished = delta.finished
                yield delta
        finally:
            if self._roster.get(request.request_id) is live:
                if live.is_sent and self._engine is not None:
                    self._engine.send(Forget(request.request_id))
                self._roster.remove(live)

    async def abort(self, request_id: str) -> None:
        """See EngineClient."""
        live = self._roster.get(request_id)
        if live is None:
            return
        live.is_aborted = True
        if live.is_sent and self._engine is not None:
            self._engine.send(Abort(request_id))
        else:
            self._roster.end(live, FinishReason.ABORT)

    def status(self) -> EngineStatus:
        """See EngineClient."""
        num_running, num_waiting = self._load
        return EngineStatus(
            is_ready=self._engine is not None,
            reason="" if self._engine is not None else self._reason,
            num_requests=len(self._roster),
            num_running=num_running,
            num_waiting=num_waiting + self._roster.num_held,
            num_waiting_tokens=self._roster.num_waiting_tokens,
            num_restarts=self._num_restarts,
        )

    async def get_metrics(self) -> list[Metric]:
        """See EngineClient. While no engine is up, the last ones."""
        self._check_open()
        if self._engine is not None:
            reply = await self._ask(self._engine, "get_metrics")
            if reply is not None:
                self._totals.note(reply.metrics)
        text = "engines that were started because one before had died"
        restarts = Metric("quire:engine_restarts", float(self._num_restarts), "counter", text)
        return [*self._totals.metrics(), restarts]

    async def set_plugin(self, name: str, *, is_enabled: bool) -> None:
        """See EngineClient. It holds after restarts too."""
        await self._call("enable_plugin" if is_enabled else "disable_plugin", name)
        self._switched[name] = is_enabled

    async def reset_prefix_cache(self) -> None:
        """See EngineClient."""
        await self._call("reset_prefix_cache")

    async def close(self) -> None:
        """See EngineClient."""
        self._end(EngineClosedError("the engine was closed: start a new one"), is_closing=True)
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    def _admit(self, request: EngineRequest) -> LiveRequest:
        self._check_open()
        check_names(request.request_id, request.priority, request.salt)
        params = request.params
        params.validate()
        if params.seed is None and not params.is_greedy:  # drawn here, so that every engine samples the same
            request = replace(request, params=replace(params, seed=self._seeds.getrandbits(63)))
        live = LiveRequest(request)
        try:
            self._roster.add(live)
        except (TypeError, WireError) as error:
            raise PromptError(
                f"request {request.request_id!r} cannot be given to the engine: {error}"
            ) from None
        return live

    def _check_open(self) -> None:
        if self._is_ended:
            raise EngineClosedError(self._reason)

    async def _await_start(self, engine: EngineProcess) -> EngineDescription:
        """What an engine that is being built says it is."""
        message: FromEngine | None = Heartbeat(0, False)
        while isinstance(message, Heartbeat):
            message = await engine.receive()
        if isinstance(message, StartFailed):
            raise message.error
        if not isinstance(message, Started):
            raise EngineClosedError(
                f"the engine's process died while it built the engine: {await engine.reap()}"
            )
        values = {**message.description, "plugins": tuple(message.description["plugins"])}
        description = EngineDescription(config=self._config, **values)
        if description.fingerprint != self._fingerprint:
            raise ConfigError(
                f"the engine's process has other plugins (fingerprint {description.fingerprint[:12]}) than this one "
                f"({self._fingerprint[:12]}): restart the server after installing or removing any"
            )
        return description

    def _open(self, engine: EngineProcess) -> None:
        """An engine is up: switch its plugins as they were, and give it the requests."""
        engine.note_started()
        self._engine, self._reason = engine, ""
        for name, is_enabled in self._switched.items():
            engine.send(Call(-1, "enable_plugin" if is_enabled else "disable_plugin", [name]))
        self._roster.engine_ready(engine)
        self._changed.set()

    async def _supervise(self, engine: EngineProcess | None) -> None:
        """Take what engines say, and follow one with the next."""
        try:
            while engine is not None:
                begin = time.monotonic()
                while (message := await engine.receive()) is not None:
                    self._take(message)
                how = await engine.reap()
                if time.monotonic() - begin > STABLE_S:
                    self._num_deaths_in_a_row = 0
                self._note_death(how)
                engine = await self._next()
        except asyncio.CancelledError:
            if engine is not None:
                await _stop(engine)
            raise
        except Exception as error:
            logger.exception("the engine's supervisor failed")
            if engine is not None:
                await engine.reap()
            self._end(EngineClosedError(f"the engine's supervisor failed: {error}"), is_closing=False)

    def _take(self, message: FromEngine) -> None:
        if isinstance(message, Deltas):
            self._load = message.num_running, message.num_waiting
            for delta in message.deltas:
                live = self._roster.get(delta.request_id)
                if live is None:
                    continue  # it was left
                is_first = not live.has_output
                if live.put(delta):
                    self._num_deaths_in_a_row = 0
                    self._roster.note_output(live, is_first=is_first)
                if delta.finished:
                    self._roster.remove(live)
        elif isinstance(message, Heartbeat):
            self._load = message.num_running, message.num_waiting
        elif isinstance(message, Counters):
            self._totals.note(message.metrics)
        elif isinstance(message, Refused):
            live = self._roster.get(message.request_id)
            if live is not None:
                self._roster.remove(live)
                live.refuse(message.error)
        elif isinstance(message, Reply):
            future = self._calls.pop(message.number, None)
            if future is not None and not future.done():
                future.set_result(message)

    def _note_death(self, how: str) -> None:
        self._engine, self._reason = None, f"the engine died: {how}"
        self._load = (0, 0)
        self._changed.clear()
        self._totals.engine_died()
        for future in self._calls.values():
            if not future.done():
                future.set_result(None)
        self._calls.clear()
        self._num_deaths_in_a_row += 1
        if self._roster.engine_died():
            self._num_deaths_in_a_row = 0
        logger.error("the engine died: %s; %d requests are to go on in the next one", how, len(self._roster))

    async def _next(self) -> EngineProcess | None:
        """An engine after one that died; None: given up."""
        backoff_s = BACKOFF_S
        while self._num_deaths_in_a_row <= self._options.max_restarts:
            begin = time.monotonic()
            self._num_restarts += 1
            engine = await EngineProcess.spawn(self._config, self._options.watchdog_s)
            try:
                await self._await_start(engine)
            except QuireError as error:
                await engine.reap()
                self._reason = f"the engine cannot be started again: {error}"
                logger.error("%s", self._reason)
                self._num_deaths_in_a_row += 1
                await asyncio.sleep(backoff_s)
                backoff_s *= 2
                continue
            except BaseException:
                await engine.reap()
                raise
            self._open(engine)
            logger.info("the engine is up again after %.1f s", time.monotonic() - begin)
            return engine
        text = f"the engine was given up after {self._num_deaths_in_a_row} deaths in a row: {self._reason}"
        self._end(EngineClosedError(f"{text}; see its log, and restart the server"), is_closing=False)
        return None

    def _end(self, error: EngineClosedError, *, is_closing: bool) -> None:
        """No engine any more."""
        if not self._is_ended:
            self._is_ended, self._reason = True, str(error)
            logger.log(logging.DEBUG if is_closing else logging.ERROR, "%s", error)
        self._engine = None
        self._roster.end_all(error, is_closing=is_closing)
        for future in self._calls.values():
            if not future.done():
                future.set_result(None)
        self._calls.clear()
        self._changed.set()

    async def _call(self, method: str, *arguments: str) -> None:
        """Have an engine do something, the next one where it dies over it."""
        reply = None
        while reply is None:
            await self._changed.wait()
            self._check_open()
            if self._engine is not None:
                reply = await self._ask(self._engine, method, *arguments)
        if reply.error is not None:
            raise reply.error

    async def _ask(self, engine: EngineProcess, method: str, *arguments: str) -> Reply | None:
        """What this engine replies; None where it died."""
        number = next(self._numbers)
        future: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        engine.send(Call(number, method, list(arguments)))
        try:
            return await future
        finally:
            self._calls.pop(number, None)


async def _stop(engine: EngineProcess) -> None:
    """End an engine's process properly, or else hard."""
    engine.send(Stop())
    await engine.wait(STOP_S)
    await engine.reap()


def _load_tokenizer(config: EngineConfig, host: PluginHost) -> Tokenizer | None:
    if config.model.skip_tokenizer_init:
        return None
    model, revision = config.model.model, config.model.revision
    if config.model.tokenizer is not None:
        model, revision = config.model.tokenizer, None
    return Tokenizer.from_folder(resolve_model_folder(model, revision, host.resolve_model))
