"""Plugins of an older minor version of the hook API: which one they were written for, and adapting them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, ModuleType
from typing import Final

from quire.api import hookspecs
from quire.api.errors import PluginError
from quire.api.hookspecs import HOOK_API_VERSION
from quire.plugins.versions import format_version, is_in_range

ApiVersion = tuple[int, int]


def _same(value: object) -> object:
    return value


def _same_arguments(arguments: Mapping[str, object]) -> Mapping[str, object]:
    return arguments


@dataclass(slots=True, frozen=True)
class HookAdapter:
    """What lets an implementation of minor version m serve a host of m + 1.

    A new argument needs none: implementations take the arguments that they name. Nor does a new
    field of a spec that has a default.

    Attributes:
        arguments: from those of m + 1, by name, to those of m.
        answer: from m's to that of m + 1.
    """

    arguments: Callable[[Mapping[str, object]], Mapping[str, object]] = _same_arguments
    answer: Callable[[object], object] = _same


ADAPTERS: Final[Mapping[tuple[str, ApiVersion], HookAdapter]] = MappingProxyType({})
"""By hook and the version that its implementation was written for. Version 1.0 is the first: none yet."""


@dataclass(slots=True, frozen=True)
class HookApi:
    """The hook API that a host offers.

    Attributes:
        version: what plugins' ranges are compared with.
        specs: the module (or class) with the hook specifications.
        adapters: by hook and version, each for one step from a minor version to the next.
    """

    version: ApiVersion = HOOK_API_VERSION
    specs: ModuleType | type = hookspecs
    adapters: Mapping[tuple[str, ApiVersion], HookAdapter] = field(default_factory=lambda: ADAPTERS)

    def written_for(self, text: str) -> ApiVersion:
        """The oldest version in the range `text` that this API can adapt, for a range that holds its own.

        Raises:
            PluginError: the range is malformed, or does not hold this API's version.
        """
        if not is_in_range(self.version, text):
            raise PluginError(
                f"it was written for hook API {text}, this Quire has {format_version(self.version)}"
            )
        major, minor = self.version
        return next((major, m) for m in range(minor + 1) if is_in_range((major, m), text))

    def adapt_arguments(
        self, hook: str, written: ApiVersion, arguments: Mapping[str, object]
    ) -> Mapping[str, object]:
        """The arguments as an implementation of version `written` knows them."""
        for adapter in reversed(self._steps(hook, written)):
            arguments = adapter.arguments(arguments)
        return arguments

    def adapt_answer(self, hook: str, written: ApiVersion, answer: object) -> object:
        """The answer of an implementation of version `written`, as this API knows it."""
        for adapter in self._steps(hook, written):
            answer = adapter.answer(answer)
        return answer

    def _steps(self, hook: str, written: ApiVersion) -> list[HookAdapter]:
        if not self.adapters:
            return []
        major, minor = written
        minors = range(minor, self.version[1])
        return [self.adapters[hook, (major, m)] for m in minors if (hook, (major, m)) in self.adapters]
