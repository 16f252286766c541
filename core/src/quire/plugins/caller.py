"""Calling one plugin's implementation of a hook: only the arguments that it names, timed, and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import pluggy

from quire.plugins.calls import PluginCalls
from quire.plugins.compatibility import ApiVersion, HookApi

T = TypeVar("T")


@dataclass(slots=True, frozen=True)
class PluginCaller:
    """Calls of one plugin.

    Attributes:
        written_for: the version of the hook API that the plugin was written for.
    """

    plugin: str
    written_for: ApiVersion
    api: HookApi
    calls: PluginCalls

    def call(
        self,
        hook: str,
        impl: pluggy.HookImpl,
        check: Callable[[object], T],
        arguments: Mapping[str, object] | None = None,
    ) -> T:
        """Call an implementation and check its answer; a refused answer counts as an error of the plugin.

        Args:
            hook: its name.
            impl: one of this plugin's.
            check: gives the answer as the caller wants it, or raises PluginError.
            arguments: by name; the implementation gets those that it takes.
        """
        known = self.api.adapt_arguments(hook, self.written_for, arguments or {})
        taken = {name: known[name] for name in (*impl.argnames, *impl.kwargnames) if name in known}

        def run() -> T:
            return check(self.api.adapt_answer(hook, self.written_for, impl.function(**taken)))

        return self.calls.call(self.plugin, hook, run)
