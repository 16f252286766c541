"""Steps, and what becomes of the requests when one fails."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from quire.api.errors import StepError
from quire.api.extensions import StepReport
from quire.api.protocols import PendingStep
from quire.api.request import FinishReason
from quire.api.step import StepPlan
from quire.engine.parts import EngineParts
from quire.engine.request_book import RequestBook
from quire.engine.statistics import EngineStatistics
from quire.execution.executor import CompletedStep
from quire.execution.progress import PROGRESS
from quire.scheduling.plan import RequestUpdate

logger = logging.getLogger("quire")


@dataclass(slots=True, frozen=True)
class _Started:
    """A step that was submitted and not taken in, and when its planning began and ended."""

    plan: StepPlan
    pending: PendingStep
    begin_s: float
    planned_s: float


class Stepper:
    """Plans, runs and takes in steps; the scheduler and the book of requests agree after each, whatever failed.

    A step that the executor has completed when it is submitted is taken in before the next one is planned. Any other
    one still runs: the next step is planned and submitted meanwhile, and only then the first is taken in.

    Args:
        parts: the engine's.
        book: its requests.
        statistics: counts steps and tokens.

    Attributes:
        before_steps: told before each step runs which requests have got a slot in it; None: nobody is.
    """

    def __init__(self, parts: EngineParts, book: RequestBook, statistics: EngineStatistics) -> None:
        self._scheduler = parts.scheduler
        self._executor = parts.executor
        self._observers = parts.observers
        self._failures = parts.failures
        self._book = book
        self._statistics = statistics
        self._started: deque[_Started] = deque()
        self._at_work: StepPlan | None = None
        self._reports: list[StepReport] = []
        self.before_steps: Callable[[Sequence[str]], None] | None = None

    def step(self) -> list[str]:
        """Plan and submit a step, and take in what is due; ids of the requests that got tokens or ended."""
        changed: list[str] = []
        self._at_work = None
        try:
            begin = time.perf_counter()
            if self._failures:
                changed += self._end_failed()
            plan = self._scheduler.schedule()
            if self._failures:
                changed += self._end_failed()
            if plan.rows:
                self._submit(plan, begin)
            while self._started and (not plan.rows or self._is_due()):
                changed += self._take_in()
        except BaseException as error:
            changed += self._recover(error)
            if not isinstance(error, Exception):
                raise
        self._book.tell_finished()
        self._tell_steps()
        return list(dict.fromkeys(changed))

    def settle(self) -> None:
        """Take in what still runs where no request goes on: blocks and slots come back."""
        try:
            while self._started and not self._scheduler.has_unfinished:
                self._take_in()
        except BaseException as error:
            self._recover(error)
            if not isinstance(error, Exception):
                raise
        self._tell_steps()

    @contextmanager
    def resetting(self) -> Iterator[None]:
        """What interrupts a change of the books in here ends all requests, and is raised on."""
        try:
            yield
        except BaseException as error:
            self.reset(error)
            raise

    def reset(self, error: BaseException) -> list[str]:
        """End all requests and free all blocks, since the books may be half changed; the requests' ids."""
        failure = StepError(f"the engine had to end all requests: {type(error).__name__}: {error}")
        failure.__cause__ = error
        is_failure = isinstance(error, Exception)
        reason = FinishReason.ERROR if is_failure else FinishReason.ABORT
        logger.log(
            logging.ERROR if is_failure else logging.WARNING,
            "%s; the prefix cache is dropped",
            failure,
            exc_info=error if is_failure else None,
        )
        self._started.clear()
        self._scheduler.reset(reason, failure)
        self._failures.clear()
        self._book.cut_all(reason, failure)
        return self._book.ids()

    def _submit(self, plan: StepPlan, begin: float) -> None:
        """Give a plan to the executor."""
        self._at_work = plan
        planned = time.perf_counter()
        if self.before_steps is not None:
            owners = (self._book.owner(assignment.request_id) for assignment in plan.assignments)
            self.before_steps([owner.request_id for owner in owners if owner is not None])
        self._started.append(_Started(plan, self._executor.submit(plan), begin, planned))

    def _is_due(self) -> bool:
        """Whether the oldest step is to be taken in before another one is planned."""
        is_completed = isinstance(self._started[0].pending, CompletedStep)
        return len(self._started) > 1 or is_completed or not self._scheduler.has_unfinished

    def _take_in(self) -> list[str]:
        """Take in the oldest step's result and hand it out; the ids of changed requests."""
        started = self._started[0]
        plan = self._at_work = started.plan
        num_generated = self._statistics.num_generated_tokens
        result = started.pending.result()
        executed_at = time.perf_counter()
        updates = self._scheduler.update(plan, result)
        self._started.popleft()
        updated_at = time.perf_counter()
        changed = self._emit(updates)
        manager = self._scheduler.block_manager
        self._statistics.add_step(plan, manager.usage(), manager.block_size)
        schedule_s = started.planned_s - started.begin_s
        self._statistics.add_times(schedule_s, updated_at - executed_at, time.perf_counter() - updated_at)
        self._report(plan, self._statistics.num_generated_tokens - num_generated, started.begin_s)
        return changed

    def _recover(self, error: BaseException) -> list[str]:
        """After an exception in a step: end its requests, or all where more than the step is lost."""
        plan = self._at_work
        if plan is None or not self._scheduler.is_in_flight(plan):
            return self.reset(error)
        failure = StepError(f"step {plan.step_id} failed: {type(error).__name__}: {error}")
        failure.__cause__ = error
        changed: list[str] = []
        with self.resetting():
            while self._started and self._started[0].plan is not plan:
                changed += self._take_in_or_recover()  # of a step before it, which may be good
            if self._scheduler.is_in_flight(plan):
                changed += self._emit(self._scheduler.fail(plan, failure))
            if self._started:
                self._started.popleft()
            while self._started and not self._scheduler.has_unfinished:
                changed += self._take_in_or_recover()  # of one behind it, which has only ended requests
        return changed

    def _take_in_or_recover(self) -> list[str]:
        try:
            return self._take_in()
        except Exception as error:
            return self._recover(error)

    def _emit(self, updates: list[RequestUpdate]) -> list[str]:
        """Hand out what a step gave; the ids of changed requests."""
        changed: dict[str, None] = {}
        for update in updates:
            tracker = self._book.owner(update.request.request_id)
            if tracker is None:
                continue
            stop = tracker.apply(update)
            if stop is not None:
                self._scheduler.finish(update.request.request_id, FinishReason.STOP, stop)
                tracker.end(update.request)
            self._statistics.add_generated(len(update.new_token_ids))
            if len(update.new_token_ids) > 1:
                self._scheduler.note_steps_saved(update.request, len(update.new_token_ids) - 1)
            PROGRESS.count += 1  # decoding may take long
            changed[tracker.request_id] = None
            self._book.note_if_finished(tracker)
        return list(changed)

    def _end_failed(self) -> list[str]:
        """End the requests for which a plugin's code has failed; the ids of changed requests."""
        changed = []
        for child_id, error in list(self._failures.items()):
            tracker = self._book.owner(child_id)
            if tracker is not None and self._scheduler.finish(child_id, FinishReason.ERROR, None, error):
                tracker.end(tracker.request(child_id))
                changed.append(tracker.request_id)
                self._book.note_if_finished(tracker)
            self._failures.pop(child_id, None)
        return changed

    def _report(self, plan: StepPlan, num_generated: int, begin: float) -> None:
        if not self._observers.sees_steps:
            return
        self._reports.append(
            StepReport(
                step_id=plan.step_id,
                num_rows=len(plan.rows),
                num_tokens=plan.num_tokens,
                num_generated=num_generated,
                seconds=time.perf_counter() - begin,
                num_running=self._scheduler.num_running,
                num_waiting=self._scheduler.num_waiting,
            )
        )

    def _tell_steps(self) -> None:
        """Tell observers of the steps that were taken in since the last call."""
        while self._reports:
            self._observers.step_finished(self._reports.pop(0))
