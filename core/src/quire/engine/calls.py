"""What a supervisor has asked an engine and that is not answered."""

from __future__ import annotations

import asyncio
import itertools
import logging

from quire.engine.child import EngineProcess
from quire.engine.messages import Call, Reply

logger = logging.getLogger("quire")


class Calls:
    """Calls to the engine of now."""

    def __init__(self) -> None:
        self._futures: dict[int, asyncio.Future[Reply | None]] = {}
        self._numbers = itertools.count()

    async def ask(self, engine: EngineProcess, method: str, *arguments: str) -> Reply | None:
        """What the engine replies; None where it died."""
        number = next(self._numbers)
        future: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
        self._futures[number] = future
        engine.send(Call(number, method, list(arguments)))
        try:
            return await future
        finally:
            self._futures.pop(number, None)

    def tell(self, engine: EngineProcess, method: str, *arguments: str) -> None:
        """Have the engine do something; if that fails, the log says so."""
        engine.send(Call(next(self._numbers), method, list(arguments)))

    def answer(self, reply: Reply) -> None:
        """A reply came."""
        future = self._futures.pop(reply.number, None)
        if future is not None and not future.done():
            future.set_result(reply)
        elif reply.error is not None:
            logger.error("the engine could not do what it was told: %s", reply.error)

    def engine_died(self) -> None:
        """No reply will come."""
        for future in self._futures.values():
            if not future.done():
                future.set_result(None)
        self._futures.clear()
