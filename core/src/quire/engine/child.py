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

from quire.api.commands import EngineProcessOptions
from quire.api.config import EngineConfig
from quire.engine.messages import (
    Deltas,
    FromEngine,
    Heartbeat,
    Start,
    Stop,
    ToEngine,
)
from quire.engine.wire import LENGTH, WireError, decode_from_engine, encode, frame_length

READ_AHEAD_BYTES = 1 << 20
LONG_FRAME_BYTES = 1 << 17
BUILD_SILENCE_S = 30.0
"""How long no heartbeat may come while the engine is built: imports and loading hold the interpreter's lock."""
STALLED_S = 3.0
DUMP_S = 0.3
EOF_S = 1.0
_TICK_S = 0.25


class EngineProcess:
    """One engine process; used in one event loop.

    Args:
        process: which has the other end. reader, writer: of this end.
        options: how long it may take to start, and may then not get on.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        options: EngineProcessOptions,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._options = options
        self._progress = -1
        self._silent_s = 0.0
        self._is_started = False
        self._is_waiting = False
        self._hang = ""
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._close_at_exit())]

    @classmethod
    async def spawn(cls, config: EngineConfig, options: EngineProcessOptions) -> EngineProcess:
        """Start a process and tell it what to build; it answers with Started or StartFailed.

        Raises:
            OSError: it cannot be started, for want of memory or descriptors.
        """
        frame = encode(Start(config.model_dump(mode="json")))
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await _started(theirs.fileno())
            except BaseException:
                ours.close()
                raise
        try:
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=READ_AHEAD_BYTES)
        except BaseException:
            ours.close()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        engine = cls(process, reader, writer, options)
        engine.send_frame(frame)
        return engine

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def note_built(self) -> None:
        """It waits for whom it is for, who does not listen yet."""
        self._is_waiting = True

    def note_started(self) -> None:
        """From now on it has to get on."""
        self._is_started, self._is_waiting, self._silent_s = True, False, 0.0

    @property
    def is_stalled(self) -> bool:
        """Whether it has not got on for a while, if not for so long that it is killed."""
        return self._silent_s > STALLED_S

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
            if length > LONG_FRAME_BYTES:
                await asyncio.sleep(0)  # reading what is there already lets nobody else run
        except (asyncio.IncompleteReadError, OSError):
            return None
        except WireError:
            self._signal(signal.SIGKILL)  # what follows cannot be read either
            return None
        self._note(message)
        return message

    async def reap(self) -> str:
        """Make sure that it is dead, and leave nothing behind; how it died.

        All that must be done is done before the first wait, so that it holds where this is cancelled.
        """
        self._signal(signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # what it started and left
        for task in self._tasks:
            task.cancel()
        self._writer.transport.abort()  # unsent data is for nobody
        status = await self._process.wait()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        if self._hang:
            return self._hang
        if status < 0:
            return f"it was ended by {_signal_name(-status)}"
        return f"it ended with status {status}; its log says why"

    def _note(self, message: FromEngine) -> None:
        """What shows that it gets on."""
        if isinstance(message, Heartbeat):
            if self._is_started and message.is_busy and message.progress == self._progress:
                return
            self._progress = message.progress
            self._silent_s = 0.0
        elif isinstance(message, Deltas):
            self._silent_s = 0.0

    async def stop(self, limit_s: float) -> None:
        """End it properly, or hard where that takes longer than this or is cancelled."""
        try:
            self.send(Stop())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), limit_s)
        finally:
            await self.reap()

    async def _watch(self) -> None:
        """Kill the process when it does not get on, with its stacks on standard error."""
        self._hang = await self._next_hang()
        self._signal(signal.SIGUSR1)
        self._signal(signal.SIGCONT)  # a stopped process dumps nothing
        await asyncio.sleep(DUMP_S)
        self._signal(signal.SIGKILL)

    async def _next_hang(self) -> str:
        """Wait until it does not get on; how that shows."""
        options = self._options
        before, building_s = time.monotonic(), 0.0
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            passed_s = min(now - before, 2 * _TICK_S)  # if it was this loop that hung, that does not count
            before = now
            if self._is_waiting:
                continue
            self._silent_s += passed_s
            if not self._is_started:
                building_s += passed_s
                if building_s > options.max_build_s:
                    return f"it was not built within {options.max_build_s:g} s"
            limit_s = options.watchdog_s if self._is_started else max(options.watchdog_s, BUILD_SILENCE_S)
            if self._silent_s > limit_s:
                return f"it did not get on for {limit_s:g} s"

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


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # those for real time have no names
        return f"signal {number}"


async def _started(descriptor: int) -> asyncio.subprocess.Process:
    """A process that has the other end of the socket."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "quire.engine.process", str(descriptor), str(os.getpid())),
        pass_fds=(descriptor,),
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # so that its own children can be ended with it
        env={**os.environ, "PYTHONPATH": os.pathsep.join(_import_path())},
    )


def _import_path() -> list[str]:
    """Where this process imports from: the other one shall find the same plugins."""
    return [entry or str(Path.cwd()) for entry in sys.path]
