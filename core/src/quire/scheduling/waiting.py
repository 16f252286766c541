"""Requests that do not run: those that could, in the policy's order, and forks that wait for a leader."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from quire.api.extensions import SchedulingPolicy
from quire.api.request import Request
from quire.scheduling.plan import RequestState
from quire.scheduling.policies import view_of


class WaitingQueue:
    """A heap with lazy removal: pushing is O(log n), aborting O(1) amortised.

    Forks are parked outside of the heap until their leader's prompt is computed or the leader leaves,
    so that they block nobody.
    """

    def __init__(self, policy: SchedulingPolicy) -> None:
        self._policy = policy
        self._heap: list[tuple[tuple[float, ...], int, RequestState]] = []
        self._num_queued = 0
        self._num_tickets = 0
        self._parked: dict[Request, dict[RequestState, None]] = {}
        self._num_parked = 0

    def __len__(self) -> int:
        return self._num_queued + self._num_parked

    def __contains__(self, state: RequestState) -> bool:
        return state.ticket is not None or self._is_parked(state)

    def push(self, state: RequestState) -> None:
        """Queue a request where the policy puts it."""
        self._num_tickets += 1
        key = self._policy.key(view_of(state.request), state.arrival_index)
        state.ticket = (key, self._num_tickets, state)
        heappush(self._heap, state.ticket)
        self._num_queued += 1

    def reorder(self, policy: SchedulingPolicy) -> None:
        """Queue all that wait where another policy puts them; on an exception nothing has changed."""
        valid = [ticket for ticket in self._heap if ticket[2].ticket is ticket]
        moved = [
            (policy.key(view_of(state.request), state.arrival_index), number, state)
            for _, number, state in valid
        ]
        heapify(moved)
        self._policy = policy
        self._heap = moved
        for ticket in moved:
            ticket[2].ticket = ticket

    def peek(self) -> RequestState | None:
        """The next request; None when none is queued."""
        heap = self._heap
        while heap and heap[0][2].ticket is not heap[0]:
            heappop(heap)
        return heap[0][2] if heap else None

    def remove(self, state: RequestState) -> None:
        """Take a request out, wherever it waits."""
        if state.ticket is not None:
            state.ticket = None
            self._num_queued -= 1
            if len(self._heap) > 2 * self._num_queued + 64:
                self._heap = [ticket for ticket in self._heap if ticket[2].ticket is ticket]
                heapify(self._heap)
        elif self._is_parked(state):
            leader = state.request.fork_of
            if leader is not None:
                del self._parked[leader][state]
                self._num_parked -= 1

    def park(self, state: RequestState, leader: Request) -> None:
        """Hold a fork back until `release_forks` of its leader."""
        self._parked.setdefault(leader, {})[state] = None
        self._num_parked += 1

    def has_forks(self, leader: Request) -> bool:
        """Whether forks wait for this request."""
        return leader in self._parked

    def release_forks(self, leader: Request) -> None:
        """Queue the forks that wait for this request, if any."""
        states = self._parked.pop(leader, None)
        if states is not None:
            self._num_parked -= len(states)
            for state in states:
                self.push(state)

    def _is_parked(self, state: RequestState) -> bool:
        leader = state.request.fork_of
        return leader is not None and state in self._parked.get(leader, ())
