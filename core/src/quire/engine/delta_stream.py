"""From the engine's thread to the coroutine that reads a request's deltas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from quire.api.outputs import OutputDelta, RequestOutput


class DeltaStream:
    """What a request got and nobody has read; used in its event loop only.

    Attributes:
        start: the request's output when it was added.
        is_aborted: it shall end as soon as it is added.
        is_over: its last delta was taken.
    """

    start: RequestOutput

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.is_aborted = False
        self.is_over = False
        self.loop = asyncio.get_running_loop()
        self._deltas: list[OutputDelta] = []
        self._error: Exception | None = None
        self._is_ready = asyncio.Event()

    def put(self, delta: OutputDelta) -> None:
        """Add a delta."""
        self._deltas.append(delta)
        self._is_ready.set()

    def fail(self, error: Exception) -> None:
        """Raise this in who reads on, after what is unread."""
        self._error = error
        self._is_ready.set()

    async def take(self) -> list[OutputDelta]:
        """All deltas that have come; at least one."""
        await self._is_ready.wait()
        self._is_ready.clear()
        deltas, self._deltas = self._deltas, []
        if not deltas and self._error is not None:
            raise self._error
        if self._error is not None:
            self._is_ready.set()
        self.is_over = deltas[-1].finished
        return deltas


def put_all(items: list[tuple[DeltaStream, OutputDelta]]) -> None:
    """Hand deltas to their streams, which are of one event loop."""
    for stream, delta in items:
        stream.put(delta)


def post(loop: asyncio.AbstractEventLoop, function: Callable[..., None], argument: object) -> bool:
    """Have an event loop call something; False where it is closed, so that nobody reads any more."""
    try:
        loop.call_soon_threadsafe(function, argument)
    except RuntimeError:
        if not loop.is_closed():
            raise
        return False
    return True
