"""A runner that models what every KV slot holds, and a driver around the scheduler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from quire.api.request import FinishReason, Request, SamplingParams
from quire.api.step import PlanRow, RowResult, StepPlan, StepResult
from quire.kvcache.block_manager import BlockManager
from quire.scheduling.plan import RequestUpdate, SchedulerLimits
from quire.scheduling.policies import FcfsPolicy, PriorityPolicy
from quire.scheduling.scheduler import Scheduler

VOCABULARY = 4
STOP_TOKEN = 3
BAD = "not finite"


def extend_history(history: list[int], token_ids: list[int]) -> None:
    """Give each token a value that depends on all tokens up to it, as its KV does."""
    for token_id in token_ids[len(history) :]:
        history.append(hash((history[-1] if history else 0, token_id)))


def expected_output(prompt: list[int], max_tokens: int, stop_token_ids: frozenset[int]) -> list[int]:
    """What a request alone gives, without any cache."""
    token_ids, history = list(prompt), []
    while len(token_ids) < len(prompt) + max_tokens:
        extend_history(history, token_ids)
        token_ids.append(history[-1] % VOCABULARY)
        if token_ids[-1] in stop_token_ids:
            break
    return token_ids[len(prompt) :]


@dataclass
class Row:
    request_id: str
    token_ids: list[int]
    history: list[int] = field(default_factory=list)
    table: list[int] = field(default_factory=list)


class ModelRunner:
    """Executes plans in order; fails on any read of a slot that holds another history."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.content: list[object] = [None] * (num_blocks * block_size)
        self.slots: dict[int, Row] = {}
        self.poisoned: set[str] = set()
        self.failed: set[str] = set()
        self.num_computed: dict[str, int] = {}
        self.num_copies = 0

    def execute(self, plan: StepPlan) -> StepResult:
        for assignment in plan.assignments:
            self.slots[assignment.slot] = Row(assignment.request_id, list(assignment.token_ids))
        for update in plan.table_updates:
            table = self.slots[update.slot].table
            assert update.first_index <= len(table), "a hole in a block table"
            table[update.first_index :] = update.block_ids
        self._copy(plan.block_copies)
        assert len({row.slot for row in plan.rows}) == len(plan.rows), "two rows for one slot"
        written: set[int] = set()
        poisoned = [self._write(row, written) for row in plan.rows]
        return StepResult(
            plan.step_id, [self._sample(row, bad) for row, bad in zip(plan.rows, poisoned, strict=True)]
        )

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        sources, destinations = {a for a, _ in copies}, [b for _, b in copies]
        assert len(set(destinations)) == len(destinations) and sources.isdisjoint(destinations)
        size = self.block_size
        for source, destination in copies:
            self.content[destination * size : (destination + 1) * size] = self.content[
                source * size : (source + 1) * size
            ]
            self.num_copies += 1

    def _place(self, row: Row, position: int) -> int:
        return row.table[position // self.block_size] * self.block_size + position % self.block_size

    def _write(self, planned: PlanRow, written: set[int]) -> bool:
        row = self.slots[planned.slot]
        end = planned.start + planned.num_tokens
        assert planned.num_tokens > 0 and end <= len(row.token_ids), "scheduled tokens that nobody knows"
        assert planned.is_sampled == (end == len(row.token_ids))
        extend_history(row.history, row.token_ids)
        is_poisoned = row.request_id in self.poisoned
        self.poisoned.discard(row.request_id)
        for position in range(planned.start, end):
            slot = self._place(row, position)
            assert slot not in written, "two rows write one slot"
            written.add(slot)
            self.content[slot] = BAD if is_poisoned else row.history[position]
        self.num_computed[row.request_id] = self.num_computed.get(row.request_id, 0) + planned.num_tokens
        return is_poisoned

    def _sample(self, planned: PlanRow, is_poisoned: bool) -> RowResult:
        row = self.slots[planned.slot]
        end = planned.start + planned.num_tokens
        seen = [self.content[self._place(row, position)] for position in range(end)]
        token_ids = [row.history[end - 1] % VOCABULARY] if planned.is_sampled else []
        row.token_ids += token_ids
        if BAD in seen:
            if is_poisoned:
                self.failed.add(row.request_id)
            return RowResult(planned.slot, [], error="logits are not finite")
        assert seen == row.history[:end], f"{row.request_id} reads KV of other tokens"
        return RowResult(planned.slot, token_ids)


class Driver:
    """A scheduler, a runner, and up to `late` plans in flight between steps."""

    def __init__(
        self,
        num_blocks: int = 8,
        *,
        budget: int = 64,
        max_num_seqs: int = 4,
        max_model_len: int = 1000,
        caching: bool = True,
        chunked: bool = True,
        policy: str = "fcfs",
        late: int = 0,
    ) -> None:
        self.manager = BlockManager(num_blocks, 4, caching)
        limits = SchedulerLimits(max_num_seqs, budget, max_model_len, chunked)
        self.scheduler = Scheduler(
            limits, self.manager, {"fcfs": FcfsPolicy, "priority": PriorityPolicy}[policy]()
        )
        self.runner = ModelRunner(num_blocks, 4)
        self.late = late
        self.pending: list[tuple[StepPlan, StepResult]] = []
        self.requests: list[Request] = []
        self.updates: list[RequestUpdate] = []

    def add(
        self,
        prompt: list[int],
        max_tokens: int = 4,
        *,
        stops: bool = False,
        priority: int = 0,
        salt: str = "",
        fork_of: Request | None = None,
    ) -> Request:
        request = Request(
            request_id=f"r{len(self.requests)}",
            prompt_token_ids=list(prompt),
            params=SamplingParams(max_tokens=max_tokens),
            seed=0,
            max_total_tokens=len(prompt) + max_tokens,
            stop_token_ids=frozenset([STOP_TOKEN]) if stops else frozenset(),
            priority=priority,
            salt=salt,
            fork_of=fork_of,
        )
        self.scheduler.add(request)
        self.requests.append(request)
        return request

    def step(self) -> StepPlan:
        num_preemptions = self.scheduler.stats().num_preemptions
        plan = self.scheduler.schedule()
        if self.scheduler.stats().num_preemptions > num_preemptions:
            assert plan.rows and not plan.assignments, "admitted in a step that preempted"
        assert plan.num_tokens <= self.scheduler.limits.max_num_batched_tokens
        if plan.rows:
            self.pending.append((plan, self.runner.execute(plan)))
        else:
            assert not (plan.assignments or plan.table_updates or plan.block_copies)
            assert self.pending or not self.scheduler.has_unfinished, "nothing planned, nothing in flight"
        self.scheduler.check_invariants()
        if self.pending and (not self.late or len(self.pending) > self.late or not plan.rows):
            self.update()
        return plan

    def update(self) -> list[RequestUpdate]:
        updates = self.scheduler.update(*self.pending.pop(0))
        self.updates += updates
        self.scheduler.check_invariants()
        return updates

    def run(self, max_steps: int = 2000) -> int:
        """Step until all is done; returns how many steps."""
        for num_steps in range(max_steps):
            if not self.scheduler.has_unfinished and not self.pending:
                return num_steps
            self.step()
        raise AssertionError(f"not done after {max_steps} steps")

    def abort(self, request: Request) -> bool:
        ended = self.scheduler.finish(request.request_id, FinishReason.ABORT)
        self.scheduler.check_invariants()
        return ended

    def slots_of(self, plan: StepPlan) -> list[tuple[int, int, int]]:
        return [(row.slot, row.start, row.num_tokens) for row in plan.rows]

    def check_outputs(self) -> None:
        """Each request's output is what it gives alone; only rows that were made to fail fail."""
        for request in self.requests:
            assert request.params.max_tokens is not None
            wanted = expected_output(
                request.prompt_token_ids,
                request.max_total_tokens - request.num_prompt_tokens,
                request.stop_token_ids,
            )
            if request.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
                assert request.output_token_ids == wanted, request.request_id
            else:
                assert request.output_token_ids == wanted[: len(request.output_token_ids)]
            if request.finish_reason is FinishReason.ERROR:
                assert request.request_id in self.runner.failed, f"{request.request_id} did not fail itself"
        ends = [update.request for update in self.updates if update.is_finished]
        assert len(set(map(id, ends))) == len(ends), "a request was reported as finished twice"


@pytest.fixture(scope="session")
def make_driver() -> Callable[..., Driver]:
    return Driver
