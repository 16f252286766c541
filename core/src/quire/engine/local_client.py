"""An engine in a thread of this process, behind the interface that servers use."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing

from quire.api.client import EngineDescription, EngineRequest, EngineStatus
from quire.api.config import EngineConfig
from quire.api.errors import EngineClosedError, PromptError
from quire.api.outputs import Metric, OutputDelta
from quire.api.request import FinishReason
from quire.engine.async_llm import AsyncLLM
from quire.engine.inputs import check_names
from quire.engine.live_request import LiveRequest
from quire.loading.tokenizer import Tokenizer
from quire.plugins import PluginHost


class LocalEngine:
    """An EngineClient without a process of its own: if the engine crashes, so does its server.

    For tests, and for servers inside other programs.
    """

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._description = llm.describe()
        self._live: dict[str, LiveRequest] = {}
        self._is_closed = False

    @classmethod
    async def start(cls, config: EngineConfig, host: PluginHost | None = None) -> LocalEngine:
        """Build the engine off the event loop; raises QuireError as `LLM` does."""
        return cls(await AsyncLLM.start(config, host))

    @property
    def description(self) -> EngineDescription:
        """See EngineClient."""
        return self._description

    @property
    def tokenizer(self) -> Tokenizer | None:
        """See EngineClient."""
        return None if self._llm.config.model.skip_tokenizer_init else self._llm.get_tokenizer()

    async def stream(self, request: EngineRequest) -> AsyncGenerator[OutputDelta, None]:
        """See EngineClient."""
        live = self._admit(request)
        name = request.request_id
        prompt: dict[str, object] = {"prompt_token_ids": list(request.token_ids)}
        if request.text is not None:
            prompt["prompt"] = request.text
        deltas = self._llm.stream_deltas(
            prompt, request.params, name, priority=request.priority, salt=request.salt
        )
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    live.put(delta)
                    if delta.finished:
                        del self._live[name]
                    yield await live.take()
        except EngineClosedError as error:
            if self._is_closed:
                raise
            live.end(FinishReason.ERROR, error)  # it broke
            yield await live.take()
        finally:
            if self._live.get(name) is live:
                del self._live[name]

    async def abort(self, request_id: str) -> None:
        """See EngineClient."""
        if request_id in self._live:
            with contextlib.suppress(EngineClosedError):  # then its stream ends anyway
                await self._llm.abort(request_id)

    def status(self) -> EngineStatus:
        """See EngineClient."""
        error = self._llm.closed_error
        num_running, num_waiting = self._llm.load
        return EngineStatus(
            is_ready=error is None,
            reason="" if error is None else str(error),
            num_requests=len(self._live),
            num_running=num_running,
            num_waiting=num_waiting,
            num_waiting_tokens=sum(
                live.num_prompt_tokens for live in self._live.values() if not live.has_output
            ),
            is_ended=error is not None,
        )

    async def get_metrics(self) -> list[Metric]:
        """See EngineClient."""
        return await self._llm.get_metrics()

    async def set_plugin(self, name: str, *, is_enabled: bool) -> None:
        """See EngineClient."""
        await (self._llm.enable_plugin(name) if is_enabled else self._llm.disable_plugin(name))

    async def reset_prefix_cache(self) -> None:
        """See EngineClient."""
        await self._llm.reset_prefix_cache()

    async def close(self) -> None:
        """See EngineClient."""
        self._is_closed = True
        await asyncio.to_thread(self._llm.close)

    def _admit(self, request: EngineRequest) -> LiveRequest:
        if (error := self._llm.closed_error) is not None:
            raise error
        name = request.request_id
        check_names(name, request.priority, request.salt)
        request.params.validate()
        if name in self._live:
            raise PromptError(f"request id {name!r} is in use: give each request its own")
        live = self._live[name] = LiveRequest(request)
        return live
