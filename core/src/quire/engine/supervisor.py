"""An engine in a process of its own, which is started again when it dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from quire.api.client import EngineDescription, EngineRequest, EngineStatus
from quire.api.commands import EngineProcessOptions
from quire.api.config import EngineConfig
from quire.api.errors import EngineClosedError, PromptError
from quire.api.outputs import Metric, OutputDelta
from quire.engine.calls import Calls
from quire.engine.child import EngineProcess
from quire.engine.inputs import check_names
from quire.engine.keeper import Keeper
from quire.engine.launch import abandon, check_fingerprint, launch
from quire.engine.live_request import LiveRequest
from quire.engine.messages import (
    Begun,
    Counters,
    Deltas,
    Forgotten,
    FromEngine,
    Heartbeat,
    PromptLogprobs,
    Refused,
    Reply,
    TakingIn,
)
from quire.engine.roster import Roster
from quire.engine.switches import Switches
from quire.engine.totals import Totals, ended_requests
from quire.engine.wire import WireError
from quire.loading.resolve import resolve_model_folder
from quire.loading.tokenizer import Tokenizer
from quire.plugins import PluginHost

METRICS_WAIT_S = 2.0
"""How long an engine may take to tell its metrics, before the last ones serve."""

logger = logging.getLogger("quire")


class SupervisedEngine:
    """An EngineClient whose engine may die; see `SupervisedEngine.start`. Imports no torch."""

    def __init__(self, config: EngineConfig, options: EngineProcessOptions, fingerprint: str) -> None:
        self._tokenizer: Tokenizer | None = None
        self._description: EngineDescription | None = None
        self._keeper = Keeper(config, options, fingerprint, self)
        self._calls = Calls()
        self._switches = Switches(self._calls)
        self._roster = Roster(self._switches)
        self._totals = Totals()
        self._load = (0, 0)
        self._seeds = random.Random(config.model.seed)

    @classmethod
    async def start(cls, config: EngineConfig, options: EngineProcessOptions) -> SupervisedEngine:
        """Start the process, which builds the engine, and load the tokenizer meanwhile.

        Call it in the program's main thread: the kernel ends the process with the thread that started it.

        Raises:
            QuireError: as `LLM`; nothing stays behind. EngineClosedError: the process died.
        """
        launching = asyncio.create_task(launch(config, options))
        try:
            host = await asyncio.to_thread(PluginHost.discover, config.plugins)
            client = cls(config, options, host.fingerprint())
            client._tokenizer = await asyncio.to_thread(_load_tokenizer, config, host)
            engine, client._description = await launching
            check_fingerprint(client._description, host.fingerprint())
        except BaseException:
            await abandon(launching)
            raise
        await client._keeper.keep(engine)
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
        return None if self._keeper.engine is None else self._keeper.engine.pid

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
            self._roster.leave(live)

    async def abort(self, request_id: str) -> None:
        """See EngineClient."""
        live = self._roster.get(request_id)
        if live is not None:
            self._roster.abort(live)

    def status(self) -> EngineStatus:
        """See EngineClient."""
        num_running, num_waiting = self._load
        engine = self._keeper.engine
        is_stalled = engine is not None and engine.is_stalled
        return EngineStatus(
            is_ready=engine is not None and not is_stalled,
            reason="the engine does not get on" if is_stalled else self._keeper.reason,
            num_requests=len(self._roster),
            num_running=num_running,
            num_waiting=num_waiting + self._roster.num_held,
            num_waiting_tokens=self._roster.num_waiting_tokens,
            num_restarts=self._keeper.num_restarts,
            is_ended=self._keeper.is_ended,
        )

    async def get_metrics(self) -> list[Metric]:
        """See EngineClient. While no engine is up, or it fails to tell or takes long, the last ones."""
        self._keeper.check_open()
        if self._keeper.engine is not None:
            with contextlib.suppress(TimeoutError):
                asking = self._calls.ask(self._keeper.engine, "get_metrics")
                reply = await asyncio.wait_for(asking, METRICS_WAIT_S)
                if reply is not None and reply.error is not None:
                    logger.error("the engine has no metrics: %s", reply.error)
        text = "engines that were started because one before had died"
        restarts = Metric("quire:engine_restarts", float(self._keeper.num_restarts), "counter", text)
        return self._totals.metrics([*ended_requests(self._roster.num_ended), restarts])

    async def set_plugin(self, name: str, *, is_enabled: bool) -> None:
        """See EngineClient. It holds after restarts too."""
        while not await self._switches.switch(await self._keeper.up(), name, is_enabled=is_enabled):
            pass  # the engine died over it: the next one is asked

    async def reset_prefix_cache(self) -> None:
        """See EngineClient."""
        reply = None
        while reply is None:  # where an engine dies over it, the next one is asked
            reply = await self._calls.ask(await self._keeper.up(), "reset_prefix_cache")
        if reply.error is not None:
            raise reply.error

    async def close(self) -> None:
        """See EngineClient. Where it is cancelled, the engine is killed."""
        await self._keeper.close()

    def engine_up(self, engine: EngineProcess) -> None:
        """For the keeper: switch plugins as they were, and give the engine the requests."""
        self._switches.engine_up(engine)
        self._roster.engine_ready(engine)

    def take(self, message: FromEngine) -> bool:
        """For the keeper: the engine said something; whether a request got something."""
        if isinstance(message, Deltas):
            self._load = message.num_running, message.num_waiting
            return any([self._take_delta(delta) for delta in message.deltas])
        if isinstance(message, Heartbeat):
            self._load = message.num_running, message.num_waiting
        elif isinstance(message, Counters):
            self._note_metrics(message.metrics)
        elif isinstance(message, Reply):
            if message.metrics:
                self._note_metrics(message.metrics)
            self._calls.answer(message)
        else:
            self._take_news(message)
        return False

    def engine_died(self) -> bool:
        """For the keeper: keep what outlives an engine; whether a request is known to have ended it."""
        self._load = (0, 0)
        is_known = self._roster.engine_died()
        self._totals.engine_died(
            [
                Metric("quire:num_requests", float(len(self._roster.uncounted)), "counter"),
                Metric("quire:prompt_tokens", float(sum(self._roster.uncounted)), "counter"),
            ]
        )
        self._roster.uncounted.clear()
        self._calls.engine_died()
        logger.error("%d requests are to go on in the next engine", len(self._roster))
        return is_known

    def ended(self, error: EngineClosedError, *, is_closing: bool) -> None:
        """For the keeper: no engine any more."""
        self._load = (0, 0)
        self._roster.end_all(error, is_closing=is_closing)
        self._calls.engine_died()

    def _admit(self, request: EngineRequest) -> LiveRequest:
        self._keeper.check_open()
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

    def _take_delta(self, delta: OutputDelta) -> bool:
        """Give it to its request; whether that got output."""
        live = self._roster.answered(delta.request_id)
        if live is None:
            return False
        is_first = not live.has_output
        is_output = live.put(delta)
        if is_output:
            self._roster.note_output(live, is_first=is_first)
        if delta.finished:
            self._roster.remove(live)
        return is_output

    def _take_news(self, message: FromEngine) -> None:
        """What the engine says of requests beside their output."""
        if isinstance(message, TakingIn):
            self._roster.note_taking_in(message.request_id)
        elif isinstance(message, Begun):
            self._roster.note_begun(message.request_ids)
        elif isinstance(message, Forgotten):
            self._roster.note_forgotten(message.request_id)
        elif isinstance(message, PromptLogprobs | Refused):
            live = self._roster.answered(message.request_id)
            if live is None:
                return
            if isinstance(message, PromptLogprobs):
                live.put_prompt_logprobs(message.positions)
            else:
                live.is_taken_in = False
                self._roster.remove(live)
                live.refuse(message.error)

    def _note_metrics(self, metrics: Sequence[Metric]) -> None:
        self._totals.note(metrics)
        self._roster.note_counted()


def _load_tokenizer(config: EngineConfig, host: PluginHost) -> Tokenizer | None:
    if config.model.skip_tokenizer_init:
        return None
    model, revision = config.model.model, config.model.revision
    if config.model.tokenizer is not None:
        model, revision = config.model.tokenizer, None
    return Tokenizer.from_folder(resolve_model_folder(model, revision, host.resolve_model))
