"""A plugin's scheduling policy, kept from harming anything but the request that it fails for."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from dataclasses import dataclass, replace

from quire.api.errors import ExtensionError
from quire.api.extensions import RequestView, SchedulingPolicy
from quire.plugins.calls import PluginCalls

KEY = "SchedulingPolicy.key"

logger = logging.getLogger("quire.plugins")


@dataclass(slots=True, frozen=True)
class GuardedPolicy:
    """Never raises, and gives keys that compare; it is what the scheduler is given.

    Where the policy fails, the request gets a stand-in key and is noted in `failures`, and the engine ends
    it before it runs on. Core's own policies are called without any of this.

    Attributes:
        name: as the settings call it. plugin: who brought it.
        origin: plugin, distribution and version, for messages.
        failures: request id to error; the engine empties it.
    """

    name: str
    plugin: str
    origin: str
    policy: SchedulingPolicy
    calls: PluginCalls
    failures: MutableMapping[str, Exception]

    def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]:
        """The policy's key; (arrival_index,) where it fails."""
        view = replace(request, params=request.params.read_only_copy())
        try:
            return _checked(self.calls.call(self.plugin, KEY, self.policy.key, view, arrival_index))
        except (Exception, SystemExit) as error:
            text = (
                f"policy {self.name!r} of {self.origin} failed for request {request.request_id!r}: "
                f"{type(error).__name__}: {error}"
            )
            logger.warning("%s; the request ends with this error", text, exc_info=error)
            failure = ExtensionError(text)
            failure.__cause__ = error
            self.failures.setdefault(request.request_id, failure)
            return (arrival_index,)


def _checked(key: object) -> tuple[float, ...]:
    """The key as a plain tuple of comparable numbers; TypeError for anything else."""
    if not isinstance(key, tuple):
        raise TypeError(f"key returned {key!r}, expected a tuple of numbers")
    numbers: list[float] = []
    for entry in key:
        if not isinstance(entry, int | float) or entry != entry:
            raise TypeError(f"key returned {key!r}: {entry!r} is not a number that can be ordered")
        numbers.append(float(entry) if isinstance(entry, float) else int(entry))
    return tuple(numbers)
