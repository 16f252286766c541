"""The observer. It is called on the engine's thread between steps: be quick, and hand slow work to a thread."""

from __future__ import annotations

import logging

from quire.api.extensions import EngineObserver, RequestView, StepReport
from quire_my_observer.options import MyObserverOptions

logger = logging.getLogger("quire.my-observer")  # below "quire", whose log the commands show


class MyObserver(EngineObserver):
    """Counts, and logs the counts now and then. `request_added` is there to be overridden too."""

    def __init__(self, options: MyObserverOptions) -> None:
        self._options = options
        self.num_steps = 0
        self.num_generated = 0
        self.num_finished = 0
        self._is_due = False

    def step_finished(self, step: StepReport) -> None:
        """A step has run; the requests that it ended were reported just before."""
        self.num_steps += 1
        self.num_generated += step.num_generated
        if self._is_due:
            self._is_due = False
            logger.info(
                "%d requests, %d tokens in %d steps", self.num_finished, self.num_generated, self.num_steps
            )

    def request_finished(self, request: RequestView, finish_reason: str) -> None:
        """A request has ended: "stop", "length", "abort" or "error"."""
        self.num_finished += 1
        self._is_due |= self.num_finished % self._options.log_every == 0
