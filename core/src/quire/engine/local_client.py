"""An engine in a thread of this process, behind the interface that servers use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from quire.api.client import EngineDescription, EngineRequest, EngineStatus
from quire.api.config import EngineConfig
from quire.api.outputs import Metric, OutputDelta
from quire.engine.async_llm import AsyncLLM
from quire.loading.tokenizer import Tokenizer
from quire.plugins import PluginHost


class LocalEngine:
    """An EngineClient without a process of its own: if the engine crashes, so does its server.

    For tests, and for servers inside other programs.
    """

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._description = llm.describe()
        self._waiting: dict[str, int] = {}  # requests that have got nothing, by their prompt's tokens
        self._num_requests = 0
        self._is_closed = False

    @classmethod
    async def start(cls, config: EngineConfig, host: PluginHost | None = None) -> LocalEngine:
        """Build the engine off the event loop; raises QuireError as `LLM` does."""
        return cls(await asyncio.to_thread(AsyncLLM.from_config, config, host))

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
        prompt: dict[str, object] = {"prompt_token_ids": list(request.token_ids)}
        if request.text is not None:
            prompt["prompt"] = request.text
        name = request.request_id
        self._waiting[name] = len(request.token_ids)
        self._num_requests += 1
        try:
            deltas = self._llm.stream_deltas(
                prompt, request.params, name, priority=request.priority, salt=request.salt
            )
            async with aclosing(deltas):
                async for delta in deltas:
                    self._waiting.pop(name, None)
                    yield delta
        finally:
            self._waiting.pop(name, None)
            self._num_requests -= 1

    async def abort(self, request_id: str) -> None:
        """See EngineClient."""
        await self._llm.abort(request_id)

    def status(self) -> EngineStatus:
        """See EngineClient."""
        num_waiting = len(self._waiting)
        return EngineStatus(
            is_ready=not self._is_closed,
            reason="the engine was closed" if self._is_closed else "",
            num_requests=self._num_requests,
            num_running=self._num_requests - num_waiting,
            num_waiting=num_waiting,
            num_waiting_tokens=sum(self._waiting.values()),
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
