"""The engine's process, as the process above it sees it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

from quire.api.config import EngineConfig
from quire.engine.wire import (
    LENGTH,
    Deltas,
    FromEngine,
    Heartbeat,
    Start,
    ToEngine,
    WireError,
    decode_from_engine,
    encode,
    frame_length,
)

READ_AHEAD_BYTES = 1 << 20
BUILD_SILENCE_S = 30.0
"""How long no heartbeat may come while the engine is built: imports and loading hold the interpreter's lock."""
DUMP_S = 0.3
EOF_S = 1.0
_TICK_S = 0.25


class EngineProcess:
    """One engine process; used in one event loop.

    Args:
        process: which has the other end. reader, writer: of this end.
        watchdog_s: how long it may not get on, once it has started.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        watchdog_s: float,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._watchdog_s = watchdog_s
        self._progress = -1
        self._silent_s = 0.0
        self._is_started = False
        self._hang = ""
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._close_at_exit())]

    @classmethod
    async def spawn(cls, config: EngineConfig, watchdog_s: float) -> EngineProcess:
        """Start a process and tell it what to build; it answers with Started or StartFailed."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *(
                        sys.executable,
                        "-P",
                        "-m",
                        "quire.engine.process",
                        str(theirs.fileno()),
                        str(os.getpid()),
                    ),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(_import_path())},
                )
            except BaseException:
                ours.close()
                raise
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=READ_AHEAD_BYTES)
        engine = cls(process, reader, writer, watchdog_s)
        engine.send(Start(config.model_dump(mode="json")))
        return engine

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def note_started(self) -> None:
        """From now on it has to get on."""
        self._is_started, self._silent_s = True, 0.0

    def send(self, message: ToEngine) -> None:
        """Send a message; to a dead process it is lost."""
        self.send_frame(encode(message))

    def send_frame(self, frame: bytes) -> None:
        """Send a message that is encoded."""
        if not self._writer.is_closing():
            self._writer.write(frame)

    async def receive(self) -> FromEngine | None:
        """The next message; None when all that it said before it died is read."""
        try:
            length = frame_length(await self._reader.readexactly(LENGTH.size))
            message = decode_from_engine(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        except WireError:
            self._signal(signal.SIGKILL)  # what follows cannot be read either
            return None
        self._note(message)
        return message

    async def reap(self) -> str:
        """Make sure that it is dead, and leave nothing behind; how it died."""
        self._signal(signal.SIGKILL)
        status = await self._process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        if self._hang:
            return self._hang
        if status < 0:
            return f"it was ended by {signal.Signals(-status).name}"
        return f"it ended with status {status}; its log says why"

    async def wait(self, limit_s: float) -> None:
        """Wait until it has ended, not longer than this."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), limit_s)

    def _note(self, message: FromEngine) -> None:
        """What shows that it gets on."""
        if isinstance(message, Heartbeat):
            if self._is_started and message.is_busy and message.progress == self._progress:
                return
            self._progress = message.progress
            self._silent_s = 0.0
        elif isinstance(message, Deltas):
            self._silent_s = 0.0

    async def _watch(self) -> None:
        """Kill the process when it does not get on, with its stacks on standard error."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            self._silent_s += min(
                now - before, 2 * _TICK_S
            )  # if it was this loop that hung, that does not count
            before = now
            limit_s = self._watchdog_s if self._is_started else max(self._watchdog_s, BUILD_SILENCE_S)
            if self._silent_s > limit_s:
                break
        self._hang = f"it did not get on for {limit_s:g} s"
        self._signal(signal.SIGUSR1)
        self._signal(signal.SIGCONT)  # a stopped process dumps nothing
        await asyncio.sleep(DUMP_S)
        self._signal(signal.SIGKILL)

    async def _close_at_exit(self) -> None:
        """End `receive` when the process has ended, though a process of its own may still hold its socket."""
        await self._process.wait()
        await asyncio.sleep(EOF_S)
        self._writer.transport.abort()

    def _signal(self, number: signal.Signals) -> None:
        if (
            self._process.returncode is None
        ):  # not `send_signal`: it would take the status from the event loop
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)


def _import_path() -> list[str]:
    """Where this process imports from: the other one shall find the same plugins."""
    return [entry or str(Path.cwd()) for entry in sys.path]
