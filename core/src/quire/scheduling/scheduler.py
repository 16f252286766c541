"""The scheduler: which requests run, what each computes in a step, and what a step's result means."""

from __future__ import annotations

from quire.api.errors import (
    ExtensionError,
    KVCacheInvariantError,
    NumericalError,
    PromptError,
    StepError,
)
from quire.api.extensions import SchedulingPolicy
from quire.api.outputs import SpeculationMetrics
from quire.api.request import FinishReason, Request, RequestStatus
from quire.api.step import BlockTableUpdate, PlanRow, RowResult, StepPlan, StepResult
from quire.kvcache.block_manager import BlockManager
from quire.scheduling.admission import Admission
from quire.scheduling.damage import trace_damage
from quire.scheduling.intake import ResultIntake, check_result
from quire.scheduling.plan import (
    PlanBuilder,
    PlannedRow,
    RequestState,
    RequestUpdate,
    SchedulerLimits,
    SchedulerStats,
)
from quire.scheduling.planner import Planner
from quire.scheduling.tracked import TrackedRequests


class Scheduler:
    """Plans steps over running and waiting requests, within a token budget and the KV cache.

    There are no phases: a request has tokens left to compute, and a step takes as many as fit. Running
    requests come first, then waiting ones, both in the policy's order. A plan counts its tokens as
    computed at once, so the next one can be made before the first is updated; plans are executed and
    updated in the order in which they were made.

    Liveness: the first running request always proceeds (those after it are preempted for it, in
    reverse order), and it ends, so every request is first at some time; under `priority`, once no
    better ones arrive. A waiting request that does not fit holds back those behind it.

    Drafts: a request whose drafts are being verified is planned again when the result is known.
    """

    def __init__(
        self, limits: SchedulerLimits, block_manager: BlockManager, policy: SchedulingPolicy
    ) -> None:
        self.limits = limits
        self.block_manager = block_manager
        self._admission = Admission(limits, block_manager)
        self._requests = TrackedRequests(limits.max_num_seqs, block_manager, policy)
        self._planner = Planner(self._requests, block_manager, self._admission, limits.num_lookahead_tokens)
        self._intake = ResultIntake(self._requests)
        self._is_drafting = False
        self._in_flight: dict[int, list[PlannedRow]] = {}
        self._held_updates: list[BlockTableUpdate] = []
        self._num_steps = 0
        self._num_scheduled_tokens = 0

    @property
    def num_running(self) -> int:
        """Requests that have a slot and go on."""
        return len(self._requests.running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait: new, preempted, or forks whose leader is not ready."""
        return len(self._requests.waiting)

    @property
    def has_unfinished(self) -> bool:
        """Whether a request still wants tokens."""
        return self.num_running > 0 or self.num_waiting > 0

    def stats(self) -> SchedulerStats:
        """Counters and queue lengths of now."""
        return SchedulerStats(
            num_steps=self._num_steps,
            num_scheduled_tokens=self._num_scheduled_tokens,
            num_preemptions=self._requests.num_preemptions,
            num_forks=self._admission.num_forks,
            num_query_tokens=self.block_manager.num_query_tokens,
            num_hit_tokens=self.block_manager.num_hit_tokens,
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            speculation=self._intake.speculation,
        )

    def add(self, request: Request) -> None:
        """Queue a request; its `max_total_tokens` is lowered to what the limits allow.

        Raises:
            PromptError: the prompt is empty, the id is in use, or a fork differs from its leader.
            CapacityError: it can never be served; the text has the numbers.
        """
        if self._requests.find(request.request_id) is not None:
            raise PromptError(f"request id {request.request_id!r} is in use: give each request its own")
        self._admission.check(request)
        self._requests.add(request)

    def finish(
        self,
        request_id: str,
        reason: FinishReason,
        stop_reason: int | str | None = None,
        error: Exception | None = None,
    ) -> bool:
        """End a request, in whatever state it is; False when it is unknown or has ended before."""
        state = self._requests.find(request_id)
        if state is None or state.request.is_finished:
            return False
        self._requests.end(state, reason, stop_reason, error)
        return True

    def set_policy(self, policy: SchedulingPolicy) -> None:
        """Order waiting and running requests by another policy, from the next step on."""
        self._requests.set_policy(policy)

    def set_drafting(self, is_drafting: bool) -> None:
        """Whether plans ask the runner for drafts, from the next step on."""
        self._is_drafting = is_drafting
        if is_drafting and self._intake.speculation is None:
            self._intake.speculation = SpeculationMetrics()

    def schedule(self) -> StepPlan:
        """Plan the next step. A plan without rows has nothing else either, and needs no update."""
        builder = PlanBuilder(self._num_steps, self.limits.max_num_batched_tokens)
        slots = {state.request.slot for state in self._requests.running} if self._held_updates else set()
        builder.table_updates = [update for update in self._held_updates if update.slot in slots]
        self._held_updates = []
        self._planner.fill(builder)
        if builder.rows:
            self._num_steps += 1
            self._num_scheduled_tokens += self.limits.max_num_batched_tokens - builder.budget
            self._in_flight[builder.step_id] = builder.planned_rows
            return builder.build(self._requests.take_released_slots(), self._is_drafting_now())
        self._held_updates = builder.table_updates  # of lookahead that was cut; an empty plan is not run
        return StepPlan(builder.step_id, [], [], [], [])

    def update(self, plan: StepPlan, result: StepResult) -> list[RequestUpdate]:
        """Take in a step's result: new tokens, ends, failed rows.

        Returns one value for each request that got something; requests that ended meanwhile, and rows
        whose input turned out to be invalid, get nothing.

        Raises:
            StepError: plan and result do not belong together, or an earlier plan is not updated.
        """
        rows = self._take_rows(plan, result)
        failures: dict[RequestState, RowResult] = {
            row.state: row_result
            for row, row_result in zip(rows, result.rows, strict=True)
            if row_result.error is not None and not row.is_discarded and not row.state.is_damaged
        }
        updates = self._end_failed(plan, rows, failures) if failures else []
        for row, row_result in zip(rows, result.rows, strict=True):
            state = row.state
            _close_row(row)
            if row.digests and not row.is_discarded and not state.is_damaged:
                self.block_manager.confirm(state.request, row.digests)
            if state.request.status is RequestStatus.FINISHED:
                if state.num_planned == 0:
                    self._requests.release(state)
            elif not row.is_discarded:
                update = self._intake.apply(state, row.row, row_result)
                if update is not None:
                    updates.append(update)
        return updates

    def note_steps_saved(self, request: Request, num_steps: int) -> None:
        """The request kept so many accepted drafts of a step."""
        self._intake.note_steps_saved(request, num_steps)

    def is_in_flight(self, plan: StepPlan) -> bool:
        """Whether nothing of the plan's result was taken in yet."""
        return plan.step_id in self._in_flight

    def fail(self, plan: StepPlan, error: Exception) -> list[RequestUpdate]:
        """The whole step failed: end every request that had a row in it.

        Raises:
            StepError: an earlier plan is not updated.
        """
        if not plan.rows:
            return []
        rows = self._take_rows(plan, None)
        updates = self._contain(rows, {row.state: error for row in rows}, are_all_at_fault=True)
        for row in rows:
            _close_row(row)
            if row.state.num_planned == 0:
                self._requests.release(row.state)
        return updates

    def reset(self, reason: FinishReason, error: Exception | None = None) -> None:
        """Start over after an interrupted call: end all requests, free all blocks, forget all cached prefixes.

        Good for any state that an exception left behind; plans not updated yet are void, counters stay.
        """
        self._in_flight.clear()
        self._held_updates.clear()
        self._requests.reset(reason, error)
        self.block_manager.reset()

    def check_invariants(self) -> None:
        """Check queues, slots and the KV cache against each other; for tests and idle moments.

        Raises:
            KVCacheInvariantError: they do not agree.
        """
        self.block_manager.check_invariants()
        planned: dict[RequestState, list[PlanRow]] = {}
        for row in (row for rows in self._in_flight.values() for row in rows):
            planned.setdefault(row.state, []).append(row.row)
        self._requests.check_invariants(planned)
        if not planned and self.block_manager.num_provisional_blocks:
            raise KVCacheInvariantError("a cache entry is provisional, but no plan is in flight")

    def _is_drafting_now(self) -> bool:
        most = self.limits.max_drafting_requests
        return self._is_drafting and (most is None or self.num_running <= most)

    def _end_failed(
        self, plan: StepPlan, rows: list[PlannedRow], failures: dict[RequestState, RowResult]
    ) -> list[RequestUpdate]:
        """End requests whose row failed. What a plugin made of the logits leaves their KV good."""
        updates = []
        numerical: dict[RequestState, Exception] = {}
        for state, result in failures.items():
            text = f"step {plan.step_id} failed for this request: {result.error}"
            if result.failed_plugin is None:
                numerical[state] = NumericalError(text)
            elif not state.request.is_finished:
                self._requests.end(state, FinishReason.ERROR, None, ExtensionError(text))
                updates.append(RequestUpdate(state.request, [], is_finished=True))
        return updates + self._contain(rows, numerical) if numerical else updates

    def _contain(
        self, rows: list[PlannedRow], failures: dict[RequestState, Exception], are_all_at_fault: bool = False
    ) -> list[RequestUpdate]:
        """End failed requests; recompute those that read what a failed one had computed."""
        in_flight = [*rows, *(row for later in self._in_flight.values() for row in later)]
        failed = list(failures)
        damage = trace_damage(
            failed, [row.state for row in in_flight], self._requests.holders(), self.block_manager
        )
        at_fault = failed if are_all_at_fault else damage.at_fault
        victims = [state for state in (*damage.at_fault, *damage.victims) if state not in at_fault]
        updates = []
        for state in at_fault:
            state.is_damaged = True
            if not state.request.is_finished:
                self._requests.end(state, FinishReason.ERROR, None, failures[state])
                updates.append(RequestUpdate(state.request, [], is_finished=True))
        for state in victims:
            for row in in_flight:
                if row.state is state:
                    row.is_discarded = True
            state.request.num_in_flight = 0
            if state.request.is_finished:
                state.is_damaged = True
            elif state.is_running:
                self._requests.preempt(state)
        return updates

    def _take_rows(self, plan: StepPlan, result: StepResult | None) -> list[PlannedRow]:
        """The rows of the oldest plan, which must be this one; nothing is changed where it is not."""
        oldest = next(iter(self._in_flight), None)
        if not plan.rows:
            return []
        if plan.step_id != oldest:
            raise StepError(f"step {plan.step_id} was given for update, the next in order is {oldest}")
        rows = self._in_flight[oldest]
        if result is not None:
            check_result(plan, rows, result)
        del self._in_flight[oldest]
        return rows


def _close_row(row: PlannedRow) -> None:
    """The row's step is over."""
    row.state.num_planned -= 1
    if row.row.num_drafts:
        row.state.is_verifying = False
