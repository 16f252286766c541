"""The scheduler: which requests run, what each computes in a step, and what a step's result means."""

from __future__ import annotations

from bisect import insort
from heapq import heapify, heappop, heappush
from operator import attrgetter

from quire.api.errors import KVCacheInvariantError, NumericalError, PromptError, StepError
from quire.api.request import FinishReason, Request, RequestStatus
from quire.api.step import PlanRow, RowResult, StepPlan, StepResult
from quire.kvcache.block_manager import BlockManager
from quire.scheduling.admission import Admission
from quire.scheduling.damage import trace_damage
from quire.scheduling.plan import (
    PlanBuilder,
    PlannedRow,
    RequestState,
    RequestUpdate,
    SchedulerLimits,
    SchedulerStats,
)
from quire.scheduling.policies import Policy
from quire.scheduling.waiting import WaitingQueue

_MAX_PREEMPTIONS = 8
_BY_KEY = attrgetter("key")


class Scheduler:
    """Plans steps over running and waiting requests, within a token budget and the KV cache.

    There are no phases: a request has tokens left to compute, and a step takes as many as fit. Running
    requests come first, then waiting ones, both in the policy's order. A plan counts its tokens as
    computed at once, so the next one can be made before the first is updated; plans are executed and
    updated in the order in which they were made.

    Liveness: the first running request always proceeds (those after it are preempted for it, in
    reverse order), and it ends, so every request is first at some time; under `priority`, once no
    better ones arrive. A waiting request that does not fit holds back those behind it.
    """

    def __init__(self, limits: SchedulerLimits, block_manager: BlockManager, policy: Policy) -> None:
        self.limits = limits
        self.block_manager = block_manager
        self._policy = policy
        self._admission = Admission(limits, block_manager)
        self._states: dict[str, RequestState] = {}
        self._running: list[RequestState] = []  # by key
        self._waiting = WaitingQueue(policy)
        self._ready_leaders: list[Request] = []
        self._free_slots = list(range(limits.max_num_seqs))
        self._in_flight: dict[int, list[PlannedRow]] = {}
        self._num_added = 0
        self._num_steps = 0
        self._num_scheduled_tokens = 0
        self._num_preemptions = 0

    @property
    def num_running(self) -> int:
        """Requests that have a slot and go on."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait: new, preempted, or forks whose leader is not ready."""
        return len(self._waiting)

    @property
    def has_unfinished(self) -> bool:
        """Whether a request still wants tokens."""
        return bool(self._running) or len(self._waiting) > 0

    def stats(self) -> SchedulerStats:
        """Counters and queue lengths of now."""
        return SchedulerStats(
            num_steps=self._num_steps,
            num_scheduled_tokens=self._num_scheduled_tokens,
            num_preemptions=self._num_preemptions,
            num_forks=self._admission.num_forks,
            num_query_tokens=self.block_manager.num_query_tokens,
            num_hit_tokens=self.block_manager.num_hit_tokens,
            num_running=self.num_running,
            num_waiting=self.num_waiting,
        )

    def add(self, request: Request) -> None:
        """Queue a request; its `max_total_tokens` is lowered to what the limits allow.

        Raises:
            PromptError: the prompt is empty, the id is in use, or a fork differs from its leader.
            CapacityError: it can never be served; the text has the numbers.
        """
        if request.request_id in self._states:
            raise PromptError(f"request id {request.request_id!r} is in use: give each request its own")
        self._admission.check(request)
        state = RequestState(request, self._num_added, ((), self._num_added))
        self._num_added += 1
        self._states[request.request_id] = state
        leader = self._leader_of(request)
        if leader is not None and self._is_computing_prompt(leader):
            self._waiting.park(state, leader.request)
        else:
            self._waiting.push(state)

    def finish(
        self,
        request_id: str,
        reason: FinishReason,
        stop_reason: int | str | None = None,
        error: Exception | None = None,
    ) -> bool:
        """End a request, in whatever state it is; False when it is unknown or has ended before."""
        state = self._states.get(request_id)
        if state is None or state.request.is_finished:
            return False
        self._end(state, reason, stop_reason, error)
        return True

    def schedule(self) -> StepPlan:
        """Plan the next step. A plan without rows has nothing else either, and needs no update."""
        builder = PlanBuilder(self._num_steps, self.limits.max_num_batched_tokens)
        for leader in self._ready_leaders:
            self._waiting.release_forks(leader)
        self._ready_leaders.clear()
        if self._plan_running(builder):
            self._admit_waiting(builder)
        if builder.rows:
            self._num_steps += 1
            self._num_scheduled_tokens += self.limits.max_num_batched_tokens - builder.budget
            self._in_flight[builder.step_id] = builder.planned_rows
        return builder.build()

    def update(self, plan: StepPlan, result: StepResult) -> list[RequestUpdate]:
        """Take in a step's result: new tokens, ends, failed rows.

        Returns one value for each request that got something; requests that ended meanwhile, and rows
        whose input turned out to be invalid, get nothing.

        Raises:
            StepError: plan and result do not belong together, or an earlier plan is not updated.
        """
        rows = self._take_rows(plan, result)
        errors = {row.state: found.error for row, found in zip(rows, result.rows, strict=True) if found.error}
        updates: list[RequestUpdate] = []
        if errors:
            failures: dict[RequestState, Exception] = {
                state: NumericalError(f"request {state.request.request_id!r} failed in step {plan.step_id}: {text}")
                for state, text in errors.items()
            }
            updates = self._contain(rows, failures)
        for row, row_result in zip(rows, result.rows, strict=True):
            state = row.state
            state.num_planned -= 1
            if state.request.status is RequestStatus.FINISHED:
                if state.num_planned == 0:
                    self._release(state)
                continue
            if row.is_discarded:
                continue
            if row.digests:
                self.block_manager.confirm(state.request, row.digests)
            update = self._apply(state, row.row, row_result)
            if update is not None:
                updates.append(update)
        return updates

    def fail(self, plan: StepPlan, error: Exception) -> list[RequestUpdate]:
        """The whole step failed: end every request that had a row in it.

        Raises:
            StepError: an earlier plan is not updated.
        """
        if not plan.rows:
            return []
        rows = self._take_rows(plan, None)
        failed = [row.state for row in rows]
        trace_damage(failed, failed, [], self.block_manager)
        updates = []
        for state in failed:
            state.num_planned -= 1
            if not state.request.is_finished:
                state.is_damaged = True
                self._end(state, FinishReason.ERROR, None, error)
                updates.append(RequestUpdate(state.request, [], is_finished=True))
            elif state.num_planned == 0:
                self._release(state)
        return updates
