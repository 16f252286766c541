"""The requests that an engine knows: by id, by choice, and whether they have ended."""

from __future__ import annotations

import itertools
from dataclasses import replace

from quire.api.errors import PromptError
from quire.api.request import FinishReason
from quire.engine.observers import Observers, view_of_choices
from quire.engine.outputs import RequestTracker
from quire.engine.statistics import EngineStatistics


class RequestBook:
    """Keeps requests until they are removed, counts how they end, and tells observers of both.

    Args:
        observers: told of a request when it comes, and with the next `tell_finished` that it has ended.
        statistics: counts the ends.
    """

    def __init__(self, observers: Observers, statistics: EngineStatistics) -> None:
        self._observers = observers
        self._statistics = statistics
        self._trackers: dict[str, RequestTracker] = {}
        self._owners: dict[str, RequestTracker] = {}  # by the scheduler's request id
        self._finished: set[str] = set()
        self._untold: list[RequestTracker] = []  # ended, and observers do not know yet

    def free_id(self) -> str:
        """An id that no request has; callers may have taken some of the obvious ones."""
        numbers = itertools.count(self._statistics.num_requests)
        return next(
            name for name in (f"request-{number}" for number in numbers) if name not in self._trackers
        )

    def check_ids_are_free(self, tracker: RequestTracker) -> None:
        """Raises PromptError where a request's id, or a choice's, is another's."""
        for name in (tracker.request_id, *(child.request_id for child in tracker.requests)):
            if name in self._trackers or name in self._owners:
                raise PromptError(f"request id {name!r} is in use: give each request its own")

    def add(self, tracker: RequestTracker) -> None:
        """Take a request."""
        self._trackers[tracker.request_id] = tracker
        self._owners.update((child.request_id, tracker) for child in tracker.requests)

    def remove(self, request_id: str) -> None:
        """Forget a request; unknown ids are ignored."""
        tracker = self._trackers.pop(request_id, None)
        self._finished.discard(request_id)
        for child in tracker.requests if tracker else ():
            self._owners.pop(child.request_id, None)

    def get(self, request_id: str) -> RequestTracker | None:
        """A request by its id."""
        return self._trackers.get(request_id)

    def require(self, request_id: str) -> RequestTracker:
        """A request by its id; raises PromptError where there is none."""
        tracker = self._trackers.get(request_id)
        if tracker is None:
            raise PromptError(f"request id {request_id!r} is not known")
        return tracker

    def owner(self, child_id: str) -> RequestTracker | None:
        """The request of a choice, by the scheduler's id."""
        return self._owners.get(child_id)

    def ids(self) -> list[str]:
        """Of all requests."""
        return list(self._trackers)

    def finished_ids(self) -> list[str]:
        """Of those that have ended."""
        return list(self._finished)

    def is_finished(self, request_id: str) -> bool:
        """Whether all choices have ended."""
        return request_id in self._finished

    def note_if_finished(self, tracker: RequestTracker, reason: str | None = None) -> None:
        """Once all choices have ended: the request is finished, by default for the first one's reason."""
        if not tracker.is_finished or tracker.request_id in self._finished:
            return
        self._finished.add(tracker.request_id)
        self._statistics.add_finished(reason or tracker.finish_reason)
        if self._observers.sees_requests:
            self._untold.append(tracker)

    def cut_all(self, reason: FinishReason, error: Exception) -> None:
        """End all requests as they are."""
        for request_id, tracker in self._trackers.items():
            if request_id not in self._finished:
                tracker.cut(reason, error)
                self.note_if_finished(tracker)

    def tell_added(self, tracker: RequestTracker) -> None:
        """Tell observers of a new request."""
        if self._observers.sees_requests:
            self._observers.request_added(view_of_choices(tracker.requests))

    def tell_finished(self) -> None:
        """Tell observers of the requests that have ended since the last call."""
        while self._untold:
            tracker = self._untold.pop(0)
            view = replace(view_of_choices(tracker.requests), metrics=tracker.metrics_of_now())
            self._observers.request_finished(view, tracker.finish_reason)
