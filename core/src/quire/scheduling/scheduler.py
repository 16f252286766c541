"""The scheduler: which requests run, what each computes in a step, and what a step's result means."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from heapq import heappop, heappush
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
        failures: dict[RequestState, Exception] = {
            row.state: NumericalError(f"step {plan.step_id} failed for this request: {row_result.error}")
            for row, row_result in zip(rows, result.rows, strict=True)
            if row_result.error is not None and not row.is_discarded and not row.state.is_damaged
        }
        updates = self._contain(rows, failures) if failures else []
        for row, row_result in zip(rows, result.rows, strict=True):
            state = row.state
            state.num_planned -= 1
            if row.digests and not row.is_discarded and not state.is_damaged:
                self.block_manager.confirm(state.request, row.digests)
            if state.request.status is RequestStatus.FINISHED:
                if state.num_planned == 0:
                    self._release(state)
            elif not row.is_discarded:
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
        updates = self._contain(rows, {row.state: error for row in rows}, are_all_at_fault=True)
        for row in rows:
            row.state.num_planned -= 1
            if row.state.num_planned == 0:
                self._release(row.state)
        return updates

    def check_invariants(self) -> None:
        """Check queues, slots and the KV cache against each other; for tests and idle moments.

        Raises:
            KVCacheInvariantError: they do not agree.
        """
        self.block_manager.check_invariants()
        planned = Counter(row.state for rows in self._in_flight.values() for row in rows)
        used_slots = []
        for request_id, state in self._states.items():
            problem = self._find_problem(state, planned[state])
            if problem is not None:
                raise KVCacheInvariantError(f"request {request_id!r} {problem}")
            if state.request.slot is not None:
                used_slots.append(state.request.slot)
        if sorted(used_slots + self._free_slots) != list(range(self.limits.max_num_seqs)):
            raise KVCacheInvariantError(f"slots {used_slots} are used, {self._free_slots} are free")
        if [state.key for state in self._running] != sorted(state.key for state in self._running):
            raise KVCacheInvariantError("running requests are not in the policy's order")
        if not planned and self.block_manager.num_provisional_blocks:
            raise KVCacheInvariantError("a cache entry is provisional, but no plan is in flight")
        if not self._states and self.block_manager.usage().num_used_blocks:
            raise KVCacheInvariantError("no request is left, but blocks are used")

    def _find_problem(self, state: RequestState, num_planned: int) -> str | None:
        request = state.request
        num_queues = (state in self._running) + (state in self._waiting)
        if num_queues != (not request.is_finished):
            return f"is {request.status.value} and in {num_queues} queues"
        if state.num_planned != num_planned:
            return f"counts {state.num_planned} planned rows, plans hold {num_planned}"
        if request.is_finished:
            return None if num_planned else "has ended and is still tracked"
        if state.is_running != (request.slot is not None):
            return f"is {request.status.value} with slot {request.slot}"
        if state.is_running != self.block_manager.has_blocks(request):
            return f"is {request.status.value}, its blocks are {self.block_manager.block_ids(request)}"
        if request.num_computed_tokens > request.num_tokens + request.num_in_flight:
            return f"has {request.num_computed_tokens} computed tokens of {request.num_tokens}"
        if request.num_in_flight > num_planned:
            return f"waits for {request.num_in_flight} tokens of {num_planned} plans"
        return None

    def _plan_running(self, builder: PlanBuilder) -> bool:
        """Plan the running requests; whether there is room for waiting ones beside them."""
        running, allocate = self._running, self.block_manager.allocate
        num_visited = num_preempted = 0
        while num_visited < len(running) and builder.budget:
            state = running[num_visited]
            num_visited += 1
            request = state.request
            num_known = request.num_tokens + request.num_in_flight
            if request.num_in_flight and num_known >= request.max_total_tokens:
                continue  # the token in flight is its last
            num_tokens = self._admission.chunk(num_known - request.num_computed_tokens, builder.budget)
            if num_tokens == 0:
                continue
            allocation = allocate(request, num_tokens)
            while allocation is None:
                victim = self._choose_victim(num_visited)
                if victim is None:
                    return False
                self._preempt(victim)
                num_preempted += 1
                allocation = allocate(request, num_tokens)
            if allocation.block_ids:
                builder.change_table(self._slot_of(request), allocation)
            self._plan_row(builder, state, num_tokens)
        return num_preempted == 0

    def _admit_waiting(self, builder: PlanBuilder) -> None:
        state = self._waiting.peek()
        if state is None or not self._free_slots or not builder.budget:
            return
        num_reserved = sum(self._admission.num_reserved_blocks(running.request) for running in self._running)
        while state is not None and self._free_slots and builder.budget:
            if state.num_planned:
                return  # preempted with a token in flight, which it must know to go on
            request = state.request
            leader = self._leader_of(request)
            can_fork = leader is not None and self._holds_prompt(leader, builder.step_id)
            parent = leader.request if leader is not None and can_fork else None
            placement = self._admission.place(state, parent, builder.budget, num_reserved)
            if placement is None:
                return
            self._waiting.remove(state)
            request.status = RequestStatus.RUNNING
            request.slot = heappop(self._free_slots)
            state.key = (self._policy.key(request, state.arrival_index), state.arrival_index)
            insort(self._running, state, key=_BY_KEY)
            builder.assign(request.slot, request, self.block_manager.block_ids(request))
            builder.block_copies.extend(placement.allocation.copies)
            self._plan_row(builder, state, placement.num_tokens)
            num_reserved += self._admission.num_reserved_blocks(request)
            state = self._waiting.peek()

    def _plan_row(self, builder: PlanBuilder, state: RequestState, num_tokens: int) -> None:
        request = state.request
        start = request.num_computed_tokens
        end = start + num_tokens
        is_sampled = end == request.num_tokens + request.num_in_flight
        row = PlanRow(self._slot_of(request), start, num_tokens, is_sampled)
        request.num_computed_tokens = end
        if is_sampled:
            request.num_in_flight += 1
        state.num_planned += 1
        if state.prompt_step_id is None and end >= request.num_prompt_tokens:
            state.prompt_step_id = builder.step_id
            if self._waiting.has_forks(request):
                self._ready_leaders.append(request)
        builder.budget -= num_tokens
        builder.rows.append(row)
        builder.planned_rows.append(PlannedRow(state, row, self.block_manager.commit(request)))

    def _choose_victim(self, num_visited: int) -> RequestState | None:
        """The last request, not visited in this step, that frees blocks; None when there is none.

        Often preempted ones are spared while there is another.
        """
        spared = None
        for state in reversed(self._running[num_visited:]):
            if self.block_manager.frees_blocks(state.request):
                if state.request.num_preemptions < _MAX_PREEMPTIONS:
                    return state
                spared = spared or state
        return spared

    def _preempt(self, state: RequestState) -> None:
        """Take everything from a running request but its tokens; tokens in flight still arrive."""
        request = state.request
        self._running.remove(state)
        request.status = RequestStatus.PREEMPTED
        request.num_preemptions += 1
        request.num_computed_tokens = 0
        state.prompt_step_id = None
        state.is_forked = False
        self._num_preemptions += 1
        self.block_manager.free(request)
        self._release_slot(request)
        self._waiting.push(state)
        self._waiting.release_forks(request)

    def _apply(self, state: RequestState, row: PlanRow, result: RowResult) -> RequestUpdate | None:
        """Append a valid row's tokens and end the request where it should."""
        prompt_logprobs = None
        if result.prompt_logprobs is not None:
            num_known = max(0, state.num_prompt_logprobs - row.start)
            prompt_logprobs = result.prompt_logprobs[num_known:] or None
            state.num_prompt_logprobs = max(
                state.num_prompt_logprobs, row.start + len(result.prompt_logprobs)
            )
        request = state.request
        if not row.is_sampled:
            if prompt_logprobs is None:
                return None
            return RequestUpdate(request, [], prompt_logprobs=prompt_logprobs)
        request.num_in_flight -= 1
        output, params = request.output_token_ids, request.params
        new_token_ids = result.token_ids
        reason = stop_reason = None
        for index, token_id in enumerate(new_token_ids):
            output.append(token_id)
            if token_id in request.stop_token_ids and len(output) >= params.min_tokens:
                reason = FinishReason.STOP
                stop_reason = token_id if token_id in (params.stop_token_ids or ()) else None
            elif len(request.prompt_token_ids) + len(output) >= request.max_total_tokens:
                reason = FinishReason.LENGTH
            if reason is not None:
                new_token_ids = new_token_ids[: index + 1]
                self._end(state, reason, stop_reason, None)
                break
        logprobs = None if result.logprobs is None else result.logprobs[: len(new_token_ids)]
        return RequestUpdate(request, new_token_ids, logprobs, prompt_logprobs, reason is not None)

    def _contain(
        self, rows: list[PlannedRow], failures: dict[RequestState, Exception], are_all_at_fault: bool = False
    ) -> list[RequestUpdate]:
        """End failed requests; recompute those that read what a failed one had computed."""
        in_flight = [*rows, *(row for later in self._in_flight.values() for row in later)]
        holders = [state for state in self._states.values() if self.block_manager.has_blocks(state.request)]
        failed = list(failures)
        damage = trace_damage(failed, [row.state for row in in_flight], holders, self.block_manager)
        at_fault = failed if are_all_at_fault else damage.at_fault
        victims = [state for state in (*damage.at_fault, *damage.victims) if state not in at_fault]
        updates = []
        for state in at_fault:
            state.is_damaged = True
            if not state.request.is_finished:
                self._end(state, FinishReason.ERROR, None, failures[state])
                updates.append(RequestUpdate(state.request, [], is_finished=True))
        for state in victims:
            for row in in_flight:
                if row.state is state:
                    row.is_discarded = True
            state.request.num_in_flight = 0
            if state.request.is_finished:
                state.is_damaged = True
            elif state.is_running:
                self._preempt(state)
        return updates

    def _end(
        self,
        state: RequestState,
        reason: FinishReason,
        stop_reason: int | str | None,
        error: Exception | None,
    ) -> None:
        """Finish a request. Its blocks and slot stay until its last planned row is updated."""
        request = state.request
        if state.is_running:
            self._running.remove(state)
        else:
            self._waiting.remove(state)
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason
        request.stop_reason = stop_reason
        request.error = error
        request.num_in_flight = 0
        self._waiting.release_forks(request)
        if state.num_planned == 0:
            self._release(state)

    def _release(self, state: RequestState) -> None:
        request = state.request
        if not state.is_damaged:
            self.block_manager.confirm(request, self.block_manager.commit(request))
        self.block_manager.free(request)
        if request.slot is not None:
            self._release_slot(request)
        del self._states[request.request_id]

    def _release_slot(self, request: Request) -> None:
        heappush(self._free_slots, self._slot_of(request))
        request.slot = None

    def _take_rows(self, plan: StepPlan, result: StepResult | None) -> list[PlannedRow]:
        """The rows of the oldest plan, which must be this one; nothing is changed where it is not."""
        oldest = next(iter(self._in_flight), None)
        if not plan.rows:
            return []
        if plan.step_id != oldest:
            raise StepError(f"step {plan.step_id} was given for update, the next in order is {oldest}")
        rows = self._in_flight[oldest]
        if result is not None:
            if result.step_id != plan.step_id or len(result.rows) != len(rows):
                raise StepError(
                    f"step {plan.step_id} has {len(rows)} rows, its result is of step {result.step_id} "
                    f"and has {len(result.rows)}"
                )
            for planned, found in zip(rows, result.rows, strict=True):
                if found.slot != planned.row.slot:
                    raise StepError(
                        f"a result is for slot {found.slot}, its plan's row for {planned.row.slot}"
                    )
                if planned.row.is_sampled and not found.token_ids and found.error is None:
                    raise StepError(f"slot {found.slot} was to be sampled and has neither token nor error")
        del self._in_flight[oldest]
        return rows

    def _leader_of(self, request: Request) -> RequestState | None:
        """The tracked state of the request that this one is a fork of."""
        leader = request.fork_of
        state = None if leader is None else self._states.get(leader.request_id)
        return state if state is not None and state.request is leader else None

    def _is_computing_prompt(self, leader: RequestState) -> bool:
        """Whether a fork should wait for it: it has never run, or its prompt is not complete."""
        if leader.is_running:
            return leader.prompt_step_id is None
        return leader.request.status is RequestStatus.WAITING

    def _holds_prompt(self, leader: RequestState, step_id: int) -> bool:
        """Whether it runs and its prompt was computed in a step before this one."""
        return leader.is_running and leader.prompt_step_id is not None and leader.prompt_step_id < step_id

    def _slot_of(self, request: Request) -> int:
        if request.slot is None:
            raise KVCacheInvariantError(f"request {request.request_id!r} has no slot")
        return request.slot
