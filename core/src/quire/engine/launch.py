"""Starting an engine's process, until its engine is built."""

from __future__ import annotations

import asyncio

from quire.api.client import EngineDescription
from quire.api.commands import EngineProcessOptions
from quire.api.config import EngineConfig
from quire.api.errors import ConfigError, EngineClosedError
from quire.engine.child import EngineProcess
from quire.engine.messages import FromEngine, Heartbeat, Started, StartFailed

Launched = tuple[EngineProcess, EngineDescription]


async def launch(
    config: EngineConfig, options: EngineProcessOptions, fingerprint: str | None = None
) -> Launched:
    """An engine that is built, and what it says it is. If it fails or is cancelled, no process stays behind.

    Args:
        config: of the engine.
        options: of its process.
        fingerprint: see `check_fingerprint`, which is to be called later where this is None.

    Raises:
        QuireError: why it cannot be built. EngineClosedError: the process died.
        OSError: there is no process.
    """
    engine = await EngineProcess.spawn(config, options)
    try:
        message: FromEngine | None = Heartbeat(0, False)
        while isinstance(message, Heartbeat):
            message = await engine.receive()
        if isinstance(message, StartFailed):
            raise message.error
        if not isinstance(message, Started):
            how = await engine.reap()
            raise EngineClosedError(f"the engine's process died while it built the engine: {how}")
        engine.note_built()
        values = {**message.description, "plugins": tuple(message.description["plugins"])}
        description = EngineDescription(config=config, **values)
        if fingerprint is not None:
            check_fingerprint(description, fingerprint)
    except BaseException:
        await engine.reap()
        raise
    return engine, description


async def abandon(launching: asyncio.Task[Launched]) -> None:
    """Undo a launch, however far it is; nothing stays behind."""
    launching.cancel()
    await asyncio.wait([launching])
    if not launching.cancelled() and launching.exception() is None:
        engine, _ = launching.result()
        await engine.reap()


def check_fingerprint(description: EngineDescription, fingerprint: str) -> None:
    """Raise ConfigError where an engine's process has found other plugins than this one."""
    if description.fingerprint != fingerprint:
        raise ConfigError(
            f"the engine's process has other plugins (fingerprint {description.fingerprint[:12]}) than this one "
            f"({fingerprint[:12]}): restart the server after installing or removing any"
        )
