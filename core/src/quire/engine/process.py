"""An engine in a process of its own: `python -m quire.engine.process DESCRIPTOR PARENT`.

It runs what comes over the socket at DESCRIPTOR (see `quire.engine.wire`) and ends with the process PARENT.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from quire.api.config import EngineConfig
from quire.api.errors import CapacityError, EngineClosedError
from quire.api.outputs import Metric, OutputDelta
from quire.api.request import SamplingParams
from quire.engine.messages import (
    Abort,
    Begun,
    Call,
    Counters,
    Deltas,
    Forget,
    Forgotten,
    Heartbeat,
    PromptLogprobs,
    Refused,
    Reply,
    Start,
    Started,
    StartFailed,
    Stop,
    Submit,
    TakingIn,
)
from quire.engine.pulse import Pulse
from quire.engine.wire import Channel, WireError, in_parts
from quire.execution.progress import PROGRESS

if TYPE_CHECKING:
    from quire.engine.engine import Engine
    from quire.engine.engine_thread import EngineThread

HEARTBEAT_S = 0.5
COUNTERS_S = 1.0
PR_SET_PDEATHSIG = 1

logger = logging.getLogger("quire")


def _get_metrics(engine: Engine) -> list[Metric]:
    return engine.get_metrics()


_METHODS: dict[str, Callable[..., list[Metric] | None]] = {
    "get_metrics": _get_metrics,
    "enable_plugin": lambda engine, name: engine.plugins.enable(name),
    "disable_plugin": lambda engine, name: engine.plugins.disable(name),
    "reset_prefix_cache": lambda engine: engine.reset_prefix_cache(),
}
"""What a Call may name."""


class EngineServer:
    """Does what the other process says, and tells it what comes of it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._engine: Engine | None = None
        self._thread: EngineThread | None = None
        self._num_open_calls = 0  # counted by the receiving thread
        self._num_done_calls = 0  # counted by the engine's
        self._is_taking_in = False  # used by the engine's thread
        self._is_stopping = False

    def start(self, config: dict[str, Any]) -> None:
        """Build the engine and say what it is; the process ends where it cannot be built."""
        threading.Thread(target=self._beat, name="quire-heartbeat", daemon=True).start()
        try:
            from quire.engine.build import build_engine  # with torch: seconds, in which the heart beats
            from quire.engine.engine_thread import EngineThread

            build = partial(build_engine, EngineConfig.validated(config))
            self._thread = EngineThread(build, self._deliver, self._end)
            engine = self._thread.built.result()
            description = engine.describe()
            engine.before_steps(self._begin)
        except Exception as error:
            logger.debug("building the engine failed", exc_info=True)
            self._channel.send(StartFailed(error))
            sys.stderr.flush()
            os._exit(1)
        names = [field.name for field in dataclasses.fields(description) if field.name != "config"]
        self._channel.send(Started({name: getattr(description, name) for name in names}))
        self._engine = engine

    def run(self) -> None:
        """Do what is said until the end."""
        while True:
            message = self._channel.receive()
            if message is None:
                os._exit(0)  # nobody is left to work for
            if isinstance(message, Stop):
                self._is_stopping = True
                self._required_thread.close()
                return
            if isinstance(message, Submit):
                self._call(partial(self._submit, message))
            elif isinstance(message, Abort):
                self._call(partial(_abort, message.request_id))
            elif isinstance(message, Forget):
                self._call(partial(self._forget, message.request_id))
            elif isinstance(message, Call):
                self._call(partial(self._answer, message))

    @property
    def _required_thread(self) -> EngineThread:
        if self._thread is None:
            raise EngineClosedError("the engine was not started: send Start first")
        return self._thread

    def _call(self, function: Callable[[Engine], None]) -> None:
        """Have something done between two steps.

        It sends what comes of it itself, so that messages leave in the order in which things happened. What a
        broken engine was called for is not done: the next engine gets it.
        """
        self._num_open_calls += 1
        self._required_thread.call(function).add_done_callback(self._note_done)

    def _note_done(self, future: Future[None]) -> None:
        self._num_done_calls += 1

    def _submit(self, message: Submit, engine: Engine) -> None:
        """Take a request in, or refuse it."""
        try:
            self._take_in(message, engine)
        except EngineClosedError:
            raise
        except Exception as error:
            self._channel.send(Refused(message.request_id, error))

    def _take_in(self, message: Submit, engine: Engine) -> None:
        """Add a request; what the process dies of meanwhile is known to be this one."""
        self._channel.send(TakingIn(message.request_id))
        self._is_taking_in = True
        prompt: dict[str, object] = {"prompt_token_ids": message.token_ids}
        if message.text is not None:
            prompt["prompt"] = message.text
        engine.add_request(
            prompt,
            SamplingParams(**message.params),
            request_id=message.request_id,
            priority=message.priority,
            salt=message.salt,
            resumed=message.resumed,
        )
        if message.is_counted:
            engine.uncount_prompt(len(message.token_ids))

    def _begin(self, request_ids: Sequence[str]) -> None:
        """Say which requests a step is the first of, before it runs: it may end the process."""
        if request_ids or self._is_taking_in:
            self._is_taking_in = False
            self._channel.send(Begun(list(request_ids)))

    def _forget(self, request_id: str, engine: Engine) -> None:
        engine.discard(request_id)
        self._channel.send(Forgotten(request_id))

    def _answer(self, message: Call, engine: Engine) -> None:
        """Do what a call names, and say what came of it."""
        try:
            self._channel.send(
                Reply(message.number, _METHODS[message.method](engine, *message.arguments) or [])
            )
        except EngineClosedError:
            raise
        except Exception as error:
            self._channel.send(Reply(message.number, [], error))

    def _send_counters(self, engine: Engine) -> None:
        with contextlib.suppress(CapacityError, WireError):  # who asks for them is told
            self._channel.send(Counters(engine.get_metrics()))

    def _deliver(self, deltas: Sequence[OutputDelta]) -> None:
        for delta in deltas:
            self._send_prompt_logprobs(delta)
        try:
            self._channel.send(Deltas(list(deltas), *self._load()))
        except (CapacityError, WireError) as error:
            if len(deltas) > 1:
                for delta in deltas:
                    self._deliver([delta])
            else:
                self._end_unsendable(deltas[0].request_id, error)

    def _send_prompt_logprobs(self, delta: OutputDelta) -> None:
        """Send those of a long prompt ahead, but for the last ones."""
        if delta.prompt_logprobs is not None:
            *ahead, last = in_parts(delta.prompt_logprobs)
            for part in ahead:
                self._channel.send(PromptLogprobs(delta.request_id, part))
            delta.prompt_logprobs = last

    def _end_unsendable(self, request_id: str, error: Exception) -> None:
        """End a request of which there is no telling what it got; the others go on."""
        logger.error("request %s is ended: %s", request_id, error)
        if self._engine is not None:
            self._engine.discard(request_id)
        self._channel.send(Refused(request_id, error))

    def _load(self) -> tuple[int, int]:
        return (0, 0) if self._engine is None else self._engine.load

    def _end(self, reason: EngineClosedError) -> None:
        if not self._is_stopping:
            sys.stderr.flush()
            os._exit(1)  # it broke, and has said so in the log: the other process starts the next one

    def _beat(self) -> None:
        """Say that the process lives, and how the engine gets on."""
        counted_at, counted = 0.0, -1
        pulse = Pulse()
        while True:
            count = PROGRESS.count
            try:
                is_busy = self._thread is not None and not self._thread.is_idle
                is_busy = is_busy or self._num_open_calls > self._num_done_calls
                self._channel.send(Heartbeat(pulse.read(), is_busy, *self._load()))
            except OSError:
                os._exit(0)
            if self._engine is not None and count != counted and time.monotonic() - counted_at >= COUNTERS_S:
                counted_at, counted = time.monotonic(), count + 1  # the call itself counts
                self._required_thread.call(self._send_counters)
            time.sleep(HEARTBEAT_S)


def _abort(request_id: str, engine: Engine) -> None:
    engine.abort(request_id)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)  # it had ended before


def main(descriptor: int, parent: int) -> None:
    """Run an engine for the process at the other end of a socket."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal's group: the other process drains
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    os.set_inheritable(descriptor, False)
    channel = Channel(socket.socket(fileno=descriptor))
    first = channel.receive()
    if not isinstance(first, Start):
        os._exit(0)
    server = EngineServer(channel)
    server.start(first.config)
    server.run()
    sys.stderr.flush()
    os._exit(0)  # taking torch down properly takes long and gives nothing


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
