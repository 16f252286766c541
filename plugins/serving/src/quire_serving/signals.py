"""SIGTERM and SIGINT of a server. Imports nothing heavy: it is the first thing that `quire serve` needs."""

from __future__ import annotations

import asyncio
import os
import signal
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """The first signal asks the server to end, the second one ends the process at once."""

    def __init__(self) -> None:
        self._is_asked = False
        self._event: asyncio.Event | None = None

    def install(self) -> None:
        """Take the signals from now on, though there is no event loop yet."""
        for number in STOPPING:
            signal.signal(number, self._take)

    def event(self) -> asyncio.Event:
        """In the running event loop: what the first signal sets, or has set already."""
        self._event = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in STOPPING:
            loop.add_signal_handler(number, self._take, number, None)
        if self._is_asked:
            self._event.set()
        return self._event

    def _take(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._is_asked:
            os._exit(128 + number)  # the engine's process dies with this one
        self._is_asked = True
        if self._event is not None:
            self._event.set()
