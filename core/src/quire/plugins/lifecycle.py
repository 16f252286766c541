"""The hooks that are called while an engine starts, runs and stops: one plugin at a time, each by its policy."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pluggy

from quire.api.batch import DeviceInfo
from quire.api.config import EngineConfig
from quire.api.errors import ConfigError, PluginError, QuireError
from quire.api.extensions import CheckpointReader, ConfigProblem, EngineInfo, EngineObserver
from quire.api.hookspecs import HOOKS
from quire.plugins.answers import CHECKS
from quire.plugins.collect import implementations
from quire.plugins.loader import PLUGIN_FAILURES, Loaded

if TYPE_CHECKING:
    from quire.api.protocols import Model

logger = logging.getLogger("quire.plugins")


class LifecycleHooks:
    """Calls the hooks of the enabled plugins, in load order.

    A failure of a start-scoped hook ends the start and names the plugin; one of an observer-scoped hook
    is logged with plugin, distribution and version, counted by `PluginCalls`, and passed over.
    """

    def __init__(self, manager: pluggy.PluginManager, loaded: Sequence[Loaded]) -> None:
        self._manager = manager
        self._loaded = tuple(loaded)

    def resolve_model(self, name: str) -> Path | None:
        """The first plugin's folder for a model's name, or None."""
        answers = self._answers("quire_resolve_model", {"name": name})
        return cast("Path | None", next((path for _, path in answers if path is not None), None))

    def open_checkpoint(self, path: Path) -> CheckpointReader | None:
        """The first plugin's reader of a model's folder, or None."""
        answers = self._answers("quire_open_checkpoint", {"path": path})
        found = next((reader for _, reader in answers if reader is not None), None)
        return cast("CheckpointReader | None", found)

    def check_config(self, config: EngineConfig, device: DeviceInfo) -> None:
        """Ask every plugin; log the warnings, and raise one ConfigError with all that is fatal."""
        fatal = []
        for owner, found in self._answers("quire_check_config", {"config": config, "device": device}):
            for problem in cast("list[ConfigProblem]", found):
                text = f"{_owner(owner)}: {problem.message}: {problem.remedy}"
                if problem.is_fatal:
                    fatal.append(text)
                else:
                    logger.warning("%s", text)
        if fatal:
            raise ConfigError("; ".join(fatal))

    def prepare_model(self, model: Model, config: EngineConfig) -> None:
        """Let every plugin change the loaded model."""
        for _ in self._answers("quire_prepare_model", {"model": model, "config": config}):
            pass

    def create_observers(self, config: EngineConfig) -> list[tuple[str, EngineObserver]]:
        """The plugins' observers, each with the name of its plugin."""
        answers = self._answers("quire_create_observers", {"config": config})
        return [
            (owner.candidate.name, observer)
            for owner, found in answers
            for observer in cast("list[EngineObserver]", found)
        ]

    def engine_started(self, info: EngineInfo) -> None:
        """Tell every plugin."""
        for _ in self._answers("quire_engine_started", {"info": info}):
            pass

    def engine_stopping(self, info: EngineInfo, error: BaseException | None) -> None:
        """Tell every plugin, the last loaded first."""
        arguments = {"info": info, "error": error}
        for _ in self._answers("quire_engine_stopping", arguments, is_reversed=True):
            pass

    def _answers(
        self, hook: str, arguments: Mapping[str, object], *, is_reversed: bool = False
    ) -> Iterator[tuple[Loaded, object]]:
        """Each plugin's checked answer; a plugin is called when the answer before it was taken."""
        caller = getattr(self._manager.hook, hook)
        for entry in reversed(self._loaded) if is_reversed else self._loaded:
            known = {**arguments, "options": entry.options}
            for impl in implementations(caller, entry.plugin):
                try:
                    answer = entry.caller.call(hook, impl, CHECKS[hook], known)
                except PLUGIN_FAILURES as error:
                    if HOOKS[hook].scope == "start":
                        raise _named(entry, hook, error) from error
                    logger.error("%s failed in %s and is passed over: %s", _owner(entry), hook, _cause(error))
                else:
                    yield entry, answer


def _owner(entry: Loaded) -> str:
    return f"plugin {entry.candidate.name!r} ({entry.candidate.origin})"


def _cause(error: BaseException) -> str:
    return str(error) if isinstance(error, QuireError) else f"{type(error).__name__}: {error}"


def _named(entry: Loaded, hook: str, error: BaseException) -> QuireError:
    """The error to raise: of the same type where Quire knows it, with the plugin's name in front."""
    message = f"{_owner(entry)} failed in {hook}: {_cause(error)}"
    kind = type(error) if isinstance(error, QuireError) else PluginError
    try:
        return kind(message)
    except TypeError:  # a subclass of the plugin's own that takes something else
        return PluginError(message)
