"""A queue of equal requests under a policy: slots, blocks, preemption, and a load that does not end."""

from __future__ import annotations

from dataclasses import dataclass

from quire.api.extensions import RequestView, SchedulingPolicy

_BLOCK_SIZE = 4
_PROMPT_LEN = 6
_OUTPUT_LEN = 8
_MAX_STEPS = 20_000


@dataclass
class SimulatedRequest:
    """A request and what it has so far."""

    index: int
    arrived: int
    num_output: int = 0
    num_preemptions: int = 0
    is_preempted: bool = False

    @property
    def num_blocks(self) -> int:
        """Blocks that it holds while it runs, with the next token's."""
        return -(-(_PROMPT_LEN + self.num_output + 1) // _BLOCK_SIZE)

    def view(self) -> RequestView:
        """As the policy sees it."""
        return RequestView(
            request_id=f"request-{self.index}",
            priority=0,
            arrival_s=float(self.arrived),
            num_prompt_tokens=_PROMPT_LEN,
            num_output_tokens=self.num_output,
            max_total_tokens=_PROMPT_LEN + _OUTPUT_LEN,
            num_preemptions=self.num_preemptions,
            is_preempted=self.is_preempted,
        )


class QueueSimulation:
    """Serves requests as the scheduler does: the least keys run, and the greatest one makes room.

    Attributes:
        num_preemptions: so far. max_preemptions: of one request.
        patience: steps that a request may wait when it is served in fair order.
    """

    def __init__(self, policy: SchedulingPolicy, *, num_slots: int, num_blocks: int) -> None:
        self._policy = policy
        self._num_slots = num_slots
        self._num_blocks = num_blocks
        self._waiting: list[SimulatedRequest] = []
        self._running: list[SimulatedRequest] = []
        self._ended: list[int] = []
        self.num_preemptions = 0
        self.max_preemptions = 0
        at_once = max(1, min(num_slots, num_blocks // -(-(_PROMPT_LEN + _OUTPUT_LEN) // _BLOCK_SIZE)))
        self._period = -(-_OUTPUT_LEN // at_once)  # one arrives for each that can be served
        self.patience = 12 * (num_slots + 4) * self._period

    def run(self, num_requests: int) -> int:
        """Serve so many requests; the queue holds some at any time until all have come.

        Returns:
            The longest time from arrival to end, in steps; as long as the run where it does not end.
        """
        arrived = step = 0
        while len(self._ended) < num_requests and step < _MAX_STEPS:
            is_due = step % self._period == 0 or len(self._waiting) < self._num_slots
            if arrived < num_requests and is_due:
                self._waiting.append(SimulatedRequest(arrived, step))
                arrived += 1
            self._step(step)
            step += 1
        unended = [step - request.arrived for request in self._waiting + self._running]
        return max(self._ended + unended, default=0)

    def _step(self, now: int) -> None:
        self._admit()
        self._running.sort(key=self._key)
        for request in list(self._running):
            if request not in self._running:
                continue
            while self._used() > self._num_blocks and self._running[-1] is not request:
                self._preempt(self._running[-1])
            if self._used() > self._num_blocks:
                self._preempt(request)
                continue
            request.num_output += 1
            if request.num_output >= _OUTPUT_LEN:
                self._running.remove(request)
                self._ended.append(now - request.arrived)

    def _admit(self) -> None:
        self._waiting.sort(key=self._key)
        while self._waiting and len(self._running) < self._num_slots:
            if self._used() + self._waiting[0].num_blocks > self._num_blocks:
                return
            request = self._waiting.pop(0)
            request.is_preempted = False
            self._running.append(request)

    def _preempt(self, request: SimulatedRequest) -> None:
        self.num_preemptions += 1
        self._running.remove(request)
        request.num_preemptions += 1
        self.max_preemptions = max(self.max_preemptions, request.num_preemptions)
        request.is_preempted = True
        self._waiting.append(request)

    def _used(self) -> int:
        return sum(request.num_blocks for request in self._running)

    def _key(self, request: SimulatedRequest) -> tuple[float, ...]:
        return tuple(self._policy.key(request.view(), request.index))
