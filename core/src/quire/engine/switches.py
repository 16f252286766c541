"""Which plugins are off in a supervised engine, whichever process runs it."""

from __future__ import annotations

from collections.abc import Iterable

from quire.engine.calls import Calls
from quire.engine.child import EngineProcess


class Switches:
    """Tells each engine which plugins are off, and has a request go on under those of the time it came.

    Attributes:
        disabled: names of the plugins that are off, or will be when the engine has done what it was told.
    """

    def __init__(self, calls: Calls) -> None:
        self.disabled: frozenset[str] = frozenset()
        self._calls = calls

    async def switch(self, engine: EngineProcess, name: str, *, is_enabled: bool) -> bool:
        """Turn a plugin off or on; False where the engine died over it.

        Raises:
            PluginError: it cannot be; all stays as it was.
        """
        before = self.disabled
        self._note(name, is_enabled=is_enabled)  # now: what is sent from now on comes after it
        reply = None
        try:
            reply = await self._calls.ask(engine, _method(is_enabled), name)
        finally:
            if reply is None or reply.error is not None:
                self._note(name, is_enabled=name not in before)
        if reply is not None and reply.error is not None:
            raise reply.error
        return reply is not None

    def engine_up(self, engine: EngineProcess) -> None:
        """Turn off in a new engine what is off."""
        self._tell(engine, self.disabled, self.disabled)

    def send(self, engine: EngineProcess, frame: bytes, disabled: frozenset[str]) -> None:
        """Give an engine a request that came when these plugins were off."""
        others = self.disabled ^ disabled
        self._tell(engine, others, disabled)
        engine.send_frame(frame)
        self._tell(engine, others, self.disabled)

    def _note(self, name: str, *, is_enabled: bool) -> None:
        self.disabled = self.disabled - {name} if is_enabled else self.disabled | {name}

    def _tell(self, engine: EngineProcess, names: Iterable[str], disabled: frozenset[str]) -> None:
        for name in sorted(names):
            self._calls.tell(engine, _method(name not in disabled), name)


def _method(is_enabled: bool) -> str:
    return "enable_plugin" if is_enabled else "disable_plugin"
