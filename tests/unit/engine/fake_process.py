"""An engine's process that a test plays itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from quire.api.commands import EngineProcessOptions
from quire.api.config import EngineConfig
from quire.engine.child import EngineProcess
from quire.engine.messages import (
    Call,
    FromEngine,
    Reply,
    Started,
    Stop,
    ToEngine,
)
from quire.engine.supervisor import SupervisedEngine
from quire.engine.wire import LENGTH, decode_to_engine, encode
from quire.plugins import PluginHost


class FakeProcess:
    """Stands for EngineProcess: notes what it is told, says what the test says, and dies when told to.

    Args:
        first: its first message; None: it dies before.
        answers_calls: with empty metrics.
    """

    pid = 4711
    is_stalled = False

    def __init__(self, first: FromEngine | None, *, answers_calls: bool = True) -> None:
        self.told: list[ToEngine] = []
        self.is_reaped = False
        self.answers_calls = answers_calls
        self._messages: asyncio.Queue[FromEngine | None] = asyncio.Queue()
        self._messages.put_nowait(first)

    def note_built(self) -> None:
        """It needs no watching."""

    def send(self, message: ToEngine) -> None:
        self.send_frame(encode(message))

    def send_frame(self, frame: bytes) -> None:
        message = decode_to_engine(frame[LENGTH.size :])
        self.told.append(message)
        if isinstance(message, Stop):
            self.die()
        elif isinstance(message, Call) and self.answers_calls:
            self.say(Reply(message.number))

    def say(self, *messages: FromEngine) -> None:
        for message in messages:
            self._messages.put_nowait(message)

    def die(self) -> None:
        self._messages.put_nowait(None)

    async def receive(self) -> FromEngine | None:
        return await self._messages.get()

    def note_started(self) -> None:
        pass

    async def reap(self) -> str:
        self.is_reaped = True
        return "the test ended it"

    async def stop(self, limit_s: float) -> None:
        del limit_s
        await self.reap()

    def told_of(self, *kinds: type) -> list[ToEngine]:
        """What it was told, of these kinds."""
        return [message for message in self.told if isinstance(message, kinds)]


def started(fingerprint: str | None = None) -> Started:
    """What an engine says when it is built."""
    own = PluginHost.discover(CONFIG.plugins).fingerprint() if fingerprint is None else fingerprint
    figures = dict.fromkeys(("max_model_len", "max_num_seqs", "vocab_size", "num_kv_blocks", "block_size"), 8)
    words = {"architecture": "a", "dtype": "d", "device": "cpu", "fingerprint": own}
    return Started({**figures, **words, "plugins": []})


CONFIG = EngineConfig.from_keywords({"model": "tiny", "skip_tokenizer_init": True})


class Spawner:
    """What starts processes: the next of these, each a process or what happens instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nexts: Sequence[FakeProcess | Exception]) -> None:
        self.nexts = list(nexts)
        self.num_spawned = 0
        monkeypatch.setattr(EngineProcess, "spawn", self._spawn)

    async def _spawn(self, config: EngineConfig, options: EngineProcessOptions) -> FakeProcess:
        del config, options
        self.num_spawned += 1
        found = self.nexts.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


async def start(max_restarts: int = 3) -> SupervisedEngine:
    """A supervised engine over what a Spawner gives."""
    return await SupervisedEngine.start(CONFIG, EngineProcessOptions(max_restarts=max_restarts))


async def until(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)
