"""Which requests take part in a step, and with how many tokens each."""

from __future__ import annotations

from dataclasses import replace

from quire.api.step import PlanRow
from quire.kvcache.block_manager import BlockManager
from quire.scheduling.admission import Admission
from quire.scheduling.plan import PlanBuilder, PlannedRow, RequestState
from quire.scheduling.tracked import TrackedRequests, slot_of

_MAX_PREEMPTIONS = 8


class Planner:
    """Spends a step's token budget: on running requests first, then on waiting ones, by key.

    Drafts and lookahead get what tokens and blocks are left then, and give their blocks back where they are needed.
    Without room for a running request, those after it are preempted for it, in reverse order; a step
    that preempts admits nobody. A waiting request that does not fit holds back those behind it.
    """

    def __init__(
        self,
        requests: TrackedRequests,
        block_manager: BlockManager,
        admission: Admission,
        num_lookahead_tokens: int = 0,
    ) -> None:
        self._requests = requests
        self._manager = block_manager
        self._admission = admission
        self._num_lookahead_tokens = num_lookahead_tokens

    def fill(self, builder: PlanBuilder) -> None:
        """Plan the step that the builder begins."""
        self._requests.release_ready_forks()
        if self._plan_running(builder):
            self._admit_waiting(builder)
            self._plan_drafts(builder)
        for planned in builder.planned_rows:
            planned.state.num_drafts = 0  # those not planned are not valid after this row

    def _plan_running(self, builder: PlanBuilder) -> bool:
        """Plan the running requests; whether there is room for waiting ones beside them."""
        running, allocate = self._requests.running, self._manager.allocate
        num_visited = num_preempted = 0
        while num_visited < len(running) and builder.budget:
            state = running[num_visited]
            num_visited += 1
            request = state.request
            if state.is_verifying:
                continue  # where it goes on is known when its drafts are verified
            num_known = request.num_tokens + request.num_in_flight
            if request.num_in_flight and num_known >= request.max_total_tokens:
                continue  # the token in flight is its last
            num_tokens = self._admission.chunk(num_known - request.num_computed_tokens, builder.budget)
            if num_tokens == 0:
                continue
            allocation = allocate(request, num_tokens)
            if allocation is None and self._cut_lookahead(builder):
                allocation = allocate(request, num_tokens)
            while allocation is None:
                victim = self._choose_victim(num_visited)
                if victim is None:
                    return False
                builder.drop_table(slot_of(victim.request))
                self._requests.preempt(victim)
                num_preempted += 1
                allocation = allocate(request, num_tokens)
            if allocation.block_ids:
                builder.change_table(slot_of(request), allocation)
            self._plan_row(builder, state, num_tokens)
        return num_preempted == 0

    def _cut_lookahead(self, builder: PlanBuilder) -> bool:
        """Take back blocks that hold nothing but rejected drafts and lookahead, rather than preempt; whether any."""
        num_free = self._manager.num_free_blocks
        for state in self._requests.running:
            request = state.request
            num_blocks = self._manager.truncate(request, request.num_computed_tokens)
            if num_blocks is not None:
                builder.cut_table(slot_of(request), num_blocks)
        return self._manager.num_free_blocks > num_free

    def _admit_waiting(self, builder: PlanBuilder) -> None:
        requests = self._requests
        state = requests.waiting.peek()
        if state is None or not requests.has_free_slot or not builder.budget:
            return
        num_reserved = sum(
            self._admission.num_reserved_blocks(running.request) for running in requests.running
        )
        while state is not None and requests.has_free_slot and builder.budget:
            if state.num_planned:
                return  # preempted with a token in flight, which it must know to go on
            request = state.request
            leader = requests.leader_of(request)
            can_fork = leader is not None and _holds_prompt(leader, builder.step_id)
            parent = leader.request if leader is not None and can_fork else None
            placement = self._admission.place(state, parent, builder.budget, num_reserved)
            if placement is None and self._cut_lookahead(builder):
                placement = self._admission.place(state, parent, builder.budget, num_reserved)
            if placement is None:
                return
            slot = requests.start(state)
            builder.assign(slot, request, self._manager.block_ids(request))
            builder.block_copies.extend(placement.allocation.copies)
            self._plan_row(builder, state, placement.num_tokens)
            num_reserved += self._admission.num_reserved_blocks(request)
            state = requests.waiting.peek()

    def _plan_drafts(self, builder: PlanBuilder) -> None:
        """Spend what tokens and blocks are left on drafts, and on slots that draft models write ahead."""
        for index, planned in enumerate(builder.planned_rows):
            state, row, request = planned.state, planned.row, planned.state.request
            if not row.is_sampled or not (state.num_drafts or self._num_lookahead_tokens):
                continue
            room = request.max_total_tokens - request.num_computed_tokens - 1
            num_drafts = max(0, min(state.num_drafts, builder.budget, room))
            num_ahead = num_drafts + max(0, min(self._num_lookahead_tokens, room - num_drafts))
            allocation = self._manager.allocate(request, 0, num_lookahead=num_ahead)
            if allocation is None:
                num_ahead = num_drafts
                allocation = self._manager.allocate(request, 0, num_lookahead=num_ahead)
            if allocation is None:
                continue
            if allocation.block_ids:
                builder.change_table(row.slot, allocation)
            if num_drafts:
                planned.row = builder.rows[index] = replace(
                    row, num_tokens=row.num_tokens + num_drafts, num_drafts=num_drafts
                )
                builder.budget -= num_drafts
                request.num_computed_tokens += num_drafts
                request.num_in_flight += num_drafts
                state.is_verifying = True

    def _plan_row(self, builder: PlanBuilder, state: RequestState, num_tokens: int) -> None:
        request = state.request
        start = request.num_computed_tokens
        end = start + num_tokens
        is_sampled = end == request.num_tokens + request.num_in_flight
        row = PlanRow(slot_of(request), start, num_tokens, is_sampled)
        request.num_computed_tokens = end
        if is_sampled:
            request.num_in_flight += 1
        state.num_planned += 1
        if state.prompt_step_id is None and end >= request.num_prompt_tokens:
            self._requests.note_prompt(state, builder.step_id)
        builder.budget -= num_tokens
        builder.rows.append(row)
        builder.planned_rows.append(PlannedRow(state, row, self._manager.commit(request)))

    def _choose_victim(self, num_visited: int) -> RequestState | None:
        """The last request, not visited in this step, that frees blocks; None when there is none.

        Often preempted ones are spared while there is another.
        """
        spared = None
        for state in reversed(self._requests.running[num_visited:]):
            if self._manager.frees_blocks(state.request):
                if state.request.num_preemptions < _MAX_PREEMPTIONS:
                    return state
                spared = spared or state
        return spared


def _holds_prompt(leader: RequestState, step_id: int) -> bool:
    """Whether it runs and its prompt was computed in a step before this one."""
    return leader.is_running and leader.prompt_step_id is not None and leader.prompt_step_id < step_id
