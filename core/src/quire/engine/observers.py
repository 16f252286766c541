"""Calls of observers: timed, and never more than once after a fault."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from quire.api.extensions import EngineObserver, RequestView, StepReport
from quire.api.outputs import Metric
from quire.api.request import Request
from quire.plugins.calls import PluginCalls
from quire.scheduling.policies import view_of

_METHODS = ("request_added", "step_finished", "request_finished")

logger = logging.getLogger("quire.plugins")


@dataclass(slots=True, frozen=True)
class AttachedObserver:
    """An observer and the plugin that brought it."""

    plugin: str
    observer: EngineObserver

    def method(self, name: str) -> Callable[..., None] | None:
        """The observer's own method; None where it does not override the base's."""
        found: Callable[..., None] = getattr(self.observer, name)
        own = getattr(found, "__func__", None) is not getattr(EngineObserver, name)
        return found if own else None


class Observers:
    """An engine's observers; each is called in turn until it raises or takes longer than the limit.

    Attributes:
        sees_requests, sees_steps: whether anything would be called; the engine asks before it makes a view.
    """

    def __init__(
        self, attached: Sequence[tuple[str, EngineObserver]], calls: PluginCalls, limit_s: float
    ) -> None:
        self._attached = [AttachedObserver(plugin, observer) for plugin, observer in attached]
        self._calls = calls
        self._limit_s = limit_s
        self._disabled: frozenset[str] = frozenset()
        self._num_detached: dict[str, int] = {}
        self._methods: dict[str, list[tuple[AttachedObserver, Callable[..., None]]]] = {}
        self._collect()

    @property
    def plugins(self) -> frozenset[str]:
        """The plugins that brought observers, detached and disabled ones included."""
        return frozenset({entry.plugin for entry in self._attached} | set(self._num_detached))

    def set_disabled(self, plugins: frozenset[str]) -> None:
        """Leave out the observers of these plugins from now on, and call all others again."""
        self._disabled = plugins
        self._collect()

    def request_added(self, request: RequestView) -> None:
        """Tell all that a request was accepted."""
        self._tell("request_added", request)

    def step_finished(self, report: StepReport) -> None:
        """Tell all that a step has run."""
        self._tell("step_finished", report)

    def request_finished(self, request: RequestView, finish_reason: str) -> None:
        """Tell all that a request has ended."""
        self._tell("request_finished", request, finish_reason)

    def metrics(self) -> list[Metric]:
        """Detached observers by plugin."""
        name, text = "quire:observers_detached", "observers that raised or were too slow"
        return [
            Metric(name, count, "counter", text, {"plugin": plugin})
            for plugin, count in sorted(self._num_detached.items())
        ]

    def _collect(self) -> None:
        """Keep bound methods by name, so that a point that nobody watches costs a truth test."""
        active = [entry for entry in self._attached if entry.plugin not in self._disabled]
        for name in _METHODS:
            found = [(entry, entry.method(name)) for entry in active]
            self._methods[name] = [(entry, method) for entry, method in found if method is not None]
        self.sees_steps = bool(self._methods["step_finished"])
        self.sees_requests = bool(self._methods["request_added"] or self._methods["request_finished"])

    def _tell(self, name: str, *values: object) -> None:
        for entry, method in self._methods[name]:
            own = [_own_copy(value) for value in values]
            begin = time.perf_counter()
            try:
                self._calls.call(entry.plugin, f"EngineObserver.{name}", method, *own)
            except (Exception, SystemExit) as error:
                self._detach(entry, f"{name} raised {type(error).__name__}: {error}", error)
                continue
            seconds = time.perf_counter() - begin
            if seconds > self._limit_s:
                self._detach(entry, f"{name} took {seconds:.3f} s, the limit is {self._limit_s:g} s")

    def _detach(self, entry: AttachedObserver, reason: str, error: BaseException | None = None) -> None:
        self._attached = [other for other in self._attached if other is not entry]
        self._num_detached[entry.plugin] = self._num_detached.get(entry.plugin, 0) + 1
        self._collect()
        logger.error(
            "plugin %r: its observer %s is detached, and the engine goes on without it: %s",
            entry.plugin,
            type(entry.observer).__name__,
            reason,
            exc_info=error,
        )


def view_of_choices(requests: Sequence[Request]) -> RequestView:
    """A user's request as one: tokens and preemptions are summed over its choices."""
    return replace(
        view_of(requests[0]),
        num_output_tokens=sum(len(request.output_token_ids) for request in requests),
        num_preemptions=sum(request.num_preemptions for request in requests),
    )


def _own_copy(value: object) -> object:
    """What one observer may do anything with: views hold parameters and times, which can be changed."""
    if isinstance(value, RequestView):
        metrics = None if value.metrics is None else replace(value.metrics)
        return replace(value, params=value.params.read_only_copy(), metrics=metrics)
    return value
