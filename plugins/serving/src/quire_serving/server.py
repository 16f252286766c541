"""A server's life: the socket, the engine, the answers, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import importlib
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from quire.api.client import EngineClient
from quire.api.commands import CommandTools, EngineProcessOptions
from quire.api.config import EngineConfig
from quire.api.errors import ConfigError
from quire.api.serving import ServerExtensions
from quire_serving.settings import ServeSettings
from quire_serving.signals import StopSignals

if TYPE_CHECKING:
    import uvicorn

    from quire_serving.state import ServerState

_log = logging.getLogger("quire.server")
BACKLOG = 2048
POLL_S = 0.02
FLUSH_S = 5
"""Seconds that answers have to reach their clients once the engine has ended."""


class Server:
    """Serves one model from `run` until a signal. SIGTERM and SIGINT drain; a second one exits at once."""

    def __init__(
        self,
        tools: CommandTools,
        config: EngineConfig,
        settings: ServeSettings,
        extensions: ServerExtensions,
        signals: StopSignals,
    ) -> None:
        self._tools = tools
        self._config = config
        self._settings = settings
        self._extensions = extensions
        self._signals = signals
        self._begin_s = time.perf_counter()

    def run(self) -> int:
        """Serve; the exit status. Raises QuireError where the server cannot start."""
        show_logs()
        from quire_serving.middleware.auth import read_keys
        from quire_serving.middleware.hosts import is_loopback

        has_keys = bool(read_keys(self._settings))
        with listen(self._settings.host, self._settings.port) as listener:
            if not has_keys and not is_loopback(self._settings.host):
                _log.warning(
                    "listening on %s without an API key: whoever reaches it may use it; set --api-key",
                    self._settings.host,
                )
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                return runner.run(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> int:
        stop = self._signals.event()
        client = await self._start_engine(stop)
        if client is None:
            return 0
        try:
            await self._answer(client, listener, stop)
        finally:
            await client.close()
        return 0

    async def _start_engine(self, stop: asyncio.Event) -> EngineClient | None:
        """The engine; None where the server was told to end meanwhile."""
        options = EngineProcessOptions(watchdog_s=self._settings.watchdog_s)
        starting = asyncio.create_task(
            self._tools.start_engine(self._config, options if self._settings.engine_process else None)
        )
        # The web framework is imported while the engine loads.
        importing = asyncio.create_task(asyncio.to_thread(_import_app))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await (await starting).close()
                return None
            client = await starting
            await importing
            return client
        finally:
            stopping.cancel()

    async def _answer(self, client: EngineClient, listener: socket.socket, stop: asyncio.Event) -> None:
        state = self._state(client)
        web = web_server(state)
        serving = asyncio.create_task(web.serve(sockets=[listener]))
        while not web.started and not serving.done():
            await asyncio.sleep(POLL_S / 10)
        gc.collect()
        gc.freeze()  # a full collection looks at what requests made, not at all that was imported: 0.1 s less
        _log.info(
            "serving %s at %s, ready in %.1f s",
            ", ".join(state.model_names),
            url_of(listener),
            time.perf_counter() - self._begin_s,
        )
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        await drain(state)
        web.should_exit = True
        await serving
        stopping.cancel()
        _log.info("the server has ended")

    def _state(self, client: EngineClient) -> ServerState:
        from quire_serving.admission import Admission
        from quire_serving.metrics import ServerMetrics
        from quire_serving.state import ServerState

        settings = self._settings
        names = settings.served_model_name or (self._config.model.model,)
        return ServerState(
            client=client,
            settings=settings,
            extensions=self._extensions,
            model_names=names,
            created=int(time.time()),
            admission=Admission(client, settings),
            metrics=ServerMetrics(client, names[0], settings.metrics_prefix, self._extensions.metrics),
        )


async def drain(state: ServerState) -> None:
    """Let the requests end that were begun; what is left after `drain_s` ends with an error."""
    state.is_draining = True
    limit_s = state.settings.drain_s
    _log.info("draining: %d requests have %g s to end", state.client.status().num_requests, limit_s)
    until_s = time.monotonic() + limit_s
    while _has_open(state):
        if time.monotonic() >= until_s:
            _log.warning("ending %d requests that were not done", state.client.status().num_requests)
            await state.client.close()
            return
        await asyncio.sleep(POLL_S)


def _has_open(state: ServerState) -> bool:
    """Whether the engine has requests, or will get some: what was let in may still be on its way."""
    return state.client.status().num_requests > 0 or state.admission.num_sequences > 0


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises ConfigError before anything heavy was done."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # the rest says the address once more
        is_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
        remedy = "give another --port (0 takes a free one)" if is_port else "give another --host"
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}; {remedy}") from None


def url_of(listener: socket.socket) -> str:
    """Where a socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def show_logs() -> None:
    """Log on standard error: the server's lines, and those of access as bare JSON; keeps what is set up."""
    for name, form, level in (
        ("quire", "quire: %(message)s", logging.INFO),
        ("quire.access", "%(message)s", logging.INFO),
        ("uvicorn", "quire: %(message)s", logging.WARNING),
    ):
        logger = logging.getLogger(name)
        if logger.handlers or logging.getLogger().handlers:
            continue
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(form))
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False


def web_server(state: ServerState) -> uvicorn.Server:
    import uvicorn

    from quire_serving.app import create_app
    from quire_serving.http_protocol import HttpProtocol

    class Web(uvicorn.Server):
        """Leaves signals to us."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        create_app(state),
        http=HttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=FLUSH_S,
    )
    return Web(config)


def _import_app() -> None:
    for name in ("uvicorn", "quire_serving.http_protocol", "quire_serving.app"):
        importlib.import_module(name)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The loop of uvloop, which Windows does not have."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop
