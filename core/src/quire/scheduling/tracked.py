"""The requests that the scheduler tracks: which wait, which run, in which slots."""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from operator import attrgetter

from quire.api.errors import KVCacheInvariantError
from quire.api.extensions import SchedulingPolicy
from quire.api.request import FinishReason, Request, RequestStatus
from quire.api.step import PlanRow
from quire.kvcache.block_manager import BlockManager
from quire.scheduling.plan import RequestState
from quire.scheduling.policies import view_of
from quire.scheduling.waiting import WaitingQueue

_BY_KEY = attrgetter("key")


class TrackedRequests:
    """Every request from `add` until its last planned row is updated, and its moves between the queues.

    Attributes:
        running: requests with a slot that go on, by key.
        waiting: new and preempted requests, and forks whose leader is not ready.
        num_preemptions: so far.
    """

    def __init__(self, max_num_seqs: int, block_manager: BlockManager, policy: SchedulingPolicy) -> None:
        self.running: list[RequestState] = []
        self.waiting = WaitingQueue(policy)
        self.num_preemptions = 0
        self._manager = block_manager
        self._policy = policy
        self._states: dict[str, RequestState] = {}
        self._max_num_seqs = max_num_seqs
        self._free_slots = list(range(max_num_seqs))
        self._released_slots: list[int] = []
        self._ready_leaders: list[Request] = []
        self._num_added = 0

    @property
    def has_free_slot(self) -> bool:
        """Whether another request can start."""
        return bool(self._free_slots)

    def find(self, request_id: str) -> RequestState | None:
        """The state under that id; None when there is none."""
        return self._states.get(request_id)

    def holders(self) -> list[RequestState]:
        """All that have blocks."""
        return [state for state in self._states.values() if self._manager.has_blocks(state.request)]

    def add(self, request: Request) -> None:
        """Queue a new request; a fork waits for its leader's prompt."""
        state = RequestState(request, self._num_added, ((), self._num_added))
        self._num_added += 1
        self._states[request.request_id] = state
        leader = self.leader_of(request)
        if leader is not None and _is_computing_prompt(leader):
            self.waiting.park(state, leader.request)
        else:
            self.waiting.push(state)

    def start(self, state: RequestState) -> int:
        """Move a waiting request, which has its blocks, to the running ones; returns its slot."""
        request = state.request
        self.waiting.remove(state)
        request.status = RequestStatus.RUNNING
        if request.first_scheduled_s is None:
            request.first_scheduled_s = time.monotonic()
        slot = request.slot = heappop(self._free_slots)
        state.key = (self._policy.key(view_of(request), state.arrival_index), state.arrival_index)
        insort(self.running, state, key=_BY_KEY)
        return slot

    def preempt(self, state: RequestState) -> None:
        """Take everything from a running request but its tokens; tokens in flight still arrive."""
        request = state.request
        self.running.remove(state)
        request.status = RequestStatus.PREEMPTED
        request.num_preemptions += 1
        request.num_computed_tokens = 0
        state.prompt_step_id = None
        state.is_forked = False
        state.num_drafts = 0
        self.num_preemptions += 1
        self._manager.free(request)
        self._release_slot(request)
        self.waiting.push(state)
        self.waiting.release_forks(request)

    def end(
        self,
        state: RequestState,
        reason: FinishReason,
        stop_reason: int | str | None,
        error: Exception | None,
    ) -> None:
        """Finish a request. Its blocks and slot stay until its last planned row is updated."""
        request = state.request
        if state.is_running:
            self.running.remove(state)
        else:
            self.waiting.remove(state)
        _finish(request, reason, stop_reason, error)
        self.waiting.release_forks(request)
        if state.num_planned == 0:
            self.release(state)

    def release(self, state: RequestState) -> None:
        """Take blocks and slot from an ended request without planned rows, and forget it."""
        request = state.request
        if not state.is_damaged:
            # its last token was computed by chance, in a step that was planned before the end was known
            request.num_computed_tokens = min(request.num_computed_tokens, request.num_tokens - 1)
            self._manager.confirm(request, self._manager.commit(request))
        self._manager.free(request)
        if request.slot is not None:
            self._release_slot(request)
        del self._states[request.request_id]

    def reset(self, reason: FinishReason, error: Exception | None) -> None:
        """End and forget all requests, whatever state an interrupted call left; their blocks are void."""
        for state in self._states.values():
            state.request.slot = None
            if not state.request.is_finished:
                _finish(state.request, reason, None, error)
        self._states.clear()
        self._ready_leaders.clear()
        self.running.clear()
        self.waiting = WaitingQueue(self._policy)
        self._free_slots = list(range(self._max_num_seqs))
        self._released_slots = list(range(self._max_num_seqs))

    def take_released_slots(self) -> list[int]:
        """The slots whose requests left them since the last call."""
        released, self._released_slots = self._released_slots, []
        return released

    def note_prompt(self, state: RequestState, step_id: int) -> None:
        """This step completes the request's prompt: from the next one on its forks can start."""
        state.prompt_step_id = step_id
        if self.waiting.has_forks(state.request):
            self._ready_leaders.append(state.request)

    def set_policy(self, policy: SchedulingPolicy) -> None:
        """Order all requests by another policy; slots and blocks stay where they are."""
        running = [
            ((policy.key(view_of(state.request), state.arrival_index), state.arrival_index), state)
            for state in self.running
        ]
        self.waiting.reorder(policy)
        self._policy = policy
        for key, state in running:
            state.key = key
        self.running.sort(key=_BY_KEY)

    def release_ready_forks(self) -> None:
        """Queue the forks whose leader's prompt was completed by an earlier step."""
        for leader in self._ready_leaders:
            self.waiting.release_forks(leader)
        self._ready_leaders.clear()

    def leader_of(self, request: Request) -> RequestState | None:
        """The tracked state of the request that this one is a fork of."""
        leader = request.fork_of
        state = None if leader is None else self._states.get(leader.request_id)
        return state if state is not None and state.request is leader else None

    def check_invariants(self, planned: Mapping[RequestState, Sequence[PlanRow]]) -> None:
        """Raise KVCacheInvariantError unless queues, slots and planned rows agree.

        Args:
            planned: rows in plans that are not updated yet, by request.
        """
        used_slots = []
        for request_id, state in self._states.items():
            problem = self._find_problem(state, planned.get(state, ()))
            if problem is not None:
                raise KVCacheInvariantError(f"request {request_id!r} {problem}")
            if state.request.slot is not None:
                used_slots.append(state.request.slot)
        if sorted(used_slots + self._free_slots) != list(range(self._max_num_seqs)):
            raise KVCacheInvariantError(f"slots {used_slots} are used, {self._free_slots} are free")
        if [state.key for state in self.running] != sorted(state.key for state in self.running):
            raise KVCacheInvariantError("running requests are not in the policy's order")
        if not self._states and self._manager.usage().num_used_blocks:
            raise KVCacheInvariantError("no request is left, but blocks are used")

    def _find_problem(self, state: RequestState, rows: Sequence[PlanRow]) -> str | None:
        request, num_planned = state.request, len(rows)
        num_queues = (state in self.running) + (state in self.waiting)
        if num_queues != (not request.is_finished):
            return f"is {request.status.value} and in {num_queues} queues"
        if state.num_planned != num_planned:
            return f"counts {state.num_planned} planned rows, plans hold {num_planned}"
        if request.is_finished:
            return None if num_planned else "has ended and is still tracked"
        if state.is_running != (request.slot is not None):
            return f"is {request.status.value} with slot {request.slot}"
        if state.is_running != self._manager.has_blocks(request):
            return f"is {request.status.value}, its blocks are {self._manager.block_ids(request)}"
        if request.num_computed_tokens > request.num_tokens + request.num_in_flight:
            return f"has {request.num_computed_tokens} computed tokens of {request.num_tokens}"
        if request.num_in_flight > num_planned + sum(row.num_drafts for row in rows):
            return f"waits for {request.num_in_flight} tokens of {num_planned} plans"
        return None

    def _release_slot(self, request: Request) -> None:
        slot = slot_of(request)
        heappush(self._free_slots, slot)
        self._released_slots.append(slot)
        request.slot = None


def slot_of(request: Request) -> int:
    """The slot of a running request."""
    if request.slot is None:
        raise KVCacheInvariantError(f"request {request.request_id!r} has no slot")
    return request.slot


def _finish(
    request: Request, reason: FinishReason, stop_reason: int | str | None, error: Exception | None
) -> None:
    request.finish_reason = reason
    request.stop_reason = stop_reason
    request.error = error
    request.num_in_flight = 0
    request.status = RequestStatus.FINISHED


def _is_computing_prompt(leader: RequestState) -> bool:
    """Whether a fork should wait for it: it has never run, or its prompt is not complete."""
    if leader.is_running:
        return leader.prompt_step_id is None
    return leader.request.status is RequestStatus.WAITING
