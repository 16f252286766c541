"""The asynchronous API: `AsyncLLM`, one stream of outputs per request."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from quire.api.client import EngineDescription
from quire.api.config import EngineConfig
from quire.api.errors import EngineClosedError
from quire.api.outputs import Metric, OutputDelta, RequestOutput
from quire.api.request import SamplingParams
from quire.engine.assembler import OutputAssembler
from quire.engine.build import build_engine
from quire.engine.delta_stream import DeltaStream, post, put_all
from quire.engine.engine import Engine
from quire.engine.engine_thread import EngineThread
from quire.engine.inputs import Prompt
from quire.loading.tokenizer import Tokenizer
from quire.plugins import PluginHost

T = TypeVar("T")


class AsyncLLM:
    """A model and its engine, which runs in a thread of this process; requests come from event loops.

    Leaving a stream early, or cancelling the task that reads it, aborts its request, in whatever state
    it is; its KV blocks are free before the engine's next step.

    Args:
        model: as for `LLM`, and so are the others. Building takes as long as loading the model does: from a
            coroutine, `await asyncio.to_thread(AsyncLLM, ...)`.

    Raises:
        QuireError: as `LLM`.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        config_file: str | Path | None = None,
        host: PluginHost | None = None,
        **keywords: object,
    ) -> None:
        self._begin(EngineConfig.from_keywords({"model": model, **keywords}, config_file), host)
        try:
            self._engine = self._thread.built.result()
        except BaseException:  # Ctrl-C, perhaps: nobody would close what the thread goes on to build
            self._thread.abandon()
            raise

    @classmethod
    async def start(cls, config: EngineConfig, host: PluginHost | None = None) -> AsyncLLM:
        """Build from a configuration that is made already, off the event loop."""
        llm = cls.__new__(cls)
        llm._begin(config, host)
        try:
            llm._engine = await asyncio.wrap_future(llm._thread.built)
        except BaseException:
            llm._thread.abandon()
            raise
        return llm

    def _begin(self, config: EngineConfig, host: PluginHost | None) -> None:
        """Have the engine built."""
        self.config = config
        self._submitting: dict[str, DeltaStream] = {}
        self._streams: dict[str, DeltaStream] = {}  # the engine's thread adds, changes and reads it
        self._thread = EngineThread(partial(build_engine, config, host), self._deliver, self._end)

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        salt: str = "",
    ) -> AsyncGenerator[RequestOutput, None]:
        """Complete a prompt and yield its cumulative output as it grows; a slow reader skips states.

        Args:
            prompt: see Prompt.
            sampling_params: by default the model's own.
            request_id: drawn here unless given.
            priority: for the priority policy; lower runs first.
            salt: only requests of equal salt share cached prefixes.

        Raises:
            PromptError, SamplingParamsError, CapacityError: by the first `anext`; nothing stays behind.
            EngineClosedError: the engine was closed, or broke, before the request ended.
        """
        async with self._streaming(prompt, sampling_params, request_id, priority, salt) as stream:
            assembler = OutputAssembler(stream.start)
            while not stream.is_over:
                for delta in await stream.take():
                    assembler.add(delta)
                yield assembler.output()

    async def stream_deltas(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        salt: str = "",
    ) -> AsyncGenerator[OutputDelta, None]:
        """As `generate`, but what is new each time, so that the cost does not grow with the output."""
        async with self._streaming(prompt, sampling_params, request_id, priority, salt) as stream:
            while not stream.is_over:
                for delta in await stream.take():
                    yield delta

    async def abort(self, request_id: str) -> None:
        """End a request; its stream gets what there is, and the finish reason "abort". Unknown ids are ignored."""
        stream = self._submitting.get(request_id)
        if stream is not None:
            stream.is_aborted = True
        await self._call(lambda engine: self._abort(engine, request_id))

    async def disable_plugin(self, name: str) -> None:
        """Switch a plugin off from the next step on; see `LLM.plugins`."""
        await self._call(lambda engine: engine.plugins.disable(name))

    async def enable_plugin(self, name: str) -> None:
        """Switch a plugin on again from the next step on."""
        await self._call(lambda engine: engine.plugins.enable(name))

    async def get_metrics(self) -> list[Metric]:
        """The engine's counters and gauges."""
        return await self._call(lambda engine: engine.get_metrics())

    async def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes that no running request uses."""
        await self._call(lambda engine: engine.reset_prefix_cache())

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer; raises TokenizerError with `skip_tokenizer_init`."""
        return self._engine.require_tokenizer()

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends."""
        return self._engine.default_sampling_params()

    def describe(self) -> EngineDescription:
        """What it is, for a server."""
        return self._engine.describe()

    @property
    def load(self) -> tuple[int, int]:
        """Requests that have a slot, and requests that wait for one."""
        return self._engine.load

    @property
    def closed_error(self) -> EngineClosedError | None:
        """Why it takes no requests any more: it was closed, or broke; None while it does."""
        return self._thread.closed_error

    def close(self) -> None:
        """Abort all requests and free the model; waits for the current step; idempotent."""
        self._thread.close()

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    @asynccontextmanager
    async def _streaming(
        self, prompt: Prompt, params: SamplingParams | None, request_id: str | None, priority: int, salt: str
    ) -> AsyncIterator[DeltaStream]:
        """The stream of a request, which is queued at the beginning and nobody's at the end."""
        stream = DeltaStream(request_id or f"request-{uuid.uuid4().hex}")
        try:
            await self._submit(stream, prompt, params, priority, salt)
            yield stream
        finally:
            self._leave(stream)

    async def _submit(
        self, stream: DeltaStream, prompt: Prompt, params: SamplingParams | None, priority: int, salt: str
    ) -> None:
        """Queue a request whose deltas go to a stream."""
        name = stream.request_id

        def add(engine: Engine) -> None:
            given = params or engine.default_sampling_params()
            engine.add_request(prepared, given, request_id=name, priority=priority, salt=salt)
            self._streams[name] = stream
            stream.start = engine.output(name)
            if stream.is_aborted:
                self._abort(engine, name)

        self._submitting.setdefault(name, stream)
        try:
            prepared = await asyncio.to_thread(self._engine.prepare_prompt, prompt)  # long texts take long
            await self._call(add)
        finally:
            if self._submitting.get(name) is stream:
                del self._submitting[name]

    def _leave(self, stream: DeltaStream) -> None:
        """Nobody reads the stream any more."""

        def discard(engine: Engine) -> None:
            if self._streams.get(stream.request_id) is stream:
                del self._streams[stream.request_id]
                engine.discard(stream.request_id)

        self._thread.call(discard)

    async def _call(self, function: Callable[[Engine], T]) -> T:
        return await asyncio.wrap_future(self._thread.call(function))

    def _abort(self, engine: Engine, request_id: str) -> None:
        if request_id in self._streams:
            engine.abort(request_id)  # the thread hands out what has ended

    def _deliver(self, deltas: list[OutputDelta]) -> None:
        """In the engine's thread: hand deltas to their streams, with one wake-up of each event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[DeltaStream, OutputDelta]]] = {}
        for delta in deltas:
            stream = self._streams.get(delta.request_id)
            if stream is None:
                continue
            if delta.finished:
                del self._streams[delta.request_id]
            by_loop.setdefault(stream.loop, []).append((stream, delta))
        for loop, items in by_loop.items():
            if not post(loop, put_all, items):
                for stream, _ in items:
                    self._streams.pop(stream.request_id, None)
                    self._engine.discard(stream.request_id)

    def _end(self, reason: EngineClosedError) -> None:
        """In the engine's thread: nothing follows."""
        for name, stream in self._streams.items():
            post(stream.loop, stream.fail, EngineClosedError(f"request {name!r} did not end: {reason}"))
        self._streams.clear()
