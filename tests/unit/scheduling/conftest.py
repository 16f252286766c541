"""A runner that models what every KV slot holds, and a driver around the scheduler."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

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
    drafts: list[int] = field(default_factory=list)


def coming_tokens(token_ids: list[int], count: int) -> list[int]:
    """The tokens that follow."""
    known, history = list(token_ids), []
    for _ in range(count):
        extend_history(history, known)
        known.append(history[-1] % VOCABULARY)
    return known[len(token_ids) :]


class Drafting:
    """Proposes so many tokens, the coming ones; that at `wrong_at` is spoiled."""

    def __init__(self, count: int, wrong_at: int | None = None) -> None:
        self.count = count
        self.wrong_at = wrong_at

    def __call__(self, token_ids: list[int]) -> list[int]:
        drafts = coming_tokens(token_ids, self.count)
        return [(t + 1) % VOCABULARY if i == self.wrong_at else t for i, t in enumerate(drafts)]


class RandomDrafting:
    """Proposes up to so many tokens, most of them the coming ones."""

    def __init__(self, seed: int, max_drafts: int) -> None:
        self.draw = random.Random(seed)
        self.max_drafts = max_drafts

    def __call__(self, token_ids: list[int]) -> list[int]:
        drafts = coming_tokens(token_ids, self.draw.randint(0, self.max_drafts))
        return [token if self.draw.random() < 0.8 else self.draw.randrange(VOCABULARY) for token in drafts]


class ModelRunner:
    """Executes plans in order; fails on any read of a slot that holds another history."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        propose: Callable[[list[int]], list[int]] | None = None,
        lookahead: int = 0,
    ) -> None:
        self.block_size = block_size
        self.propose = propose
        self.lookahead = lookahead
        self.content: list[object] = [None] * (num_blocks * block_size)
        self.slots: dict[int, Row] = {}
        self.poisoned: set[str] = set()
        self.failed: set[str] = set()
        self.num_computed: dict[str, int] = {}
        self.num_copies = 0
        self.draft_counts: Counter[str] = Counter()

    def execute(self, plan: StepPlan) -> StepResult:
        for slot in plan.released_slots:
            self.slots.pop(slot, None)
        for assignment in plan.assignments:
            assert assignment.slot not in self.slots, "a slot is taken that nobody released"
            self.slots[assignment.slot] = Row(assignment.request_id, list(assignment.token_ids))
        for update in plan.table_updates:
            table = self.slots[update.slot].table
            assert update.first_index <= len(table), "a hole in a block table"
            table[update.first_index :] = update.block_ids
        self._copy(plan.block_copies)
        assert len({row.slot for row in plan.rows}) == len(plan.rows), "two rows for one slot"
        written: set[int] = set()
        poisoned = [self._write(row, written) for row in plan.rows]
        results = [self._sample(row, bad) for row, bad in zip(plan.rows, poisoned, strict=True)]
        if plan.is_drafting and self.propose is not None:
            results = [self._draft(result) for result in results]
        return StepResult(plan.step_id, results)

    def _draft(self, result: RowResult) -> RowResult:
        if not result.token_ids:
            return result
        row = self.slots[result.slot]
        row.drafts = self.propose(row.token_ids)
        start = len(row.token_ids) - 1  # from here on, a draft model writes as far as there are slots
        for position in range(start, min(start + self.lookahead, len(row.table) * self.block_size)):
            self.content[self._place(row, position)] = "of a draft model"
        return replace(result, num_drafts=len(row.drafts))

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
        num_drafts = planned.num_drafts
        assert 0 <= num_drafts < planned.num_tokens and end - num_drafts <= len(row.token_ids)
        assert planned.is_sampled == (end - num_drafts == len(row.token_ids))
        assert num_drafts == 0 or (planned.is_sampled and planned.num_tokens == 1 + num_drafts)
        assert num_drafts <= len(row.drafts), "drafts that nobody proposed"
        extend_history(row.history, row.token_ids + row.drafts[:num_drafts])
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
        history, token_ids = list(row.history), self._verify(row, planned) if planned.is_sampled else []
        row.token_ids += token_ids
        del row.history[len(row.token_ids) - 1 if token_ids else end :], row.drafts[:]
        if BAD in seen:
            if is_poisoned:
                self.failed.add(row.request_id)
            return RowResult(planned.slot, [], error="logits are not finite")
        assert seen == history[:end], f"{row.request_id} reads KV of other tokens"
        return RowResult(planned.slot, token_ids)

    def _verify(self, row: Row, planned: PlanRow) -> list[int]:
        """Accepted drafts and the token after them."""
        drafts, token_ids = row.drafts[: planned.num_drafts], list[int]()
        for index in range(len(row.token_ids) - 1, len(row.token_ids) + len(drafts)):
            token_ids.append(row.history[index] % VOCABULARY)
            if token_ids != drafts[: len(token_ids)]:
                break
        if drafts:
            num_accepted = len(token_ids) - 1
            kind = "rejected" if not num_accepted else "accepted" if num_accepted == len(drafts) else "partly"
            self.draft_counts[kind] += 1
        return token_ids


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
        propose: Callable[[list[int]], list[int]] | None = None,
        lookahead: int = 0,
    ) -> None:
        self.manager = BlockManager(num_blocks, 4, caching)
        limits = SchedulerLimits(max_num_seqs, budget, max_model_len, chunked, lookahead)
        self.scheduler = Scheduler(
            limits, self.manager, {"fcfs": FcfsPolicy, "priority": PriorityPolicy}[policy]()
        )
        self.scheduler.set_drafting(propose is not None)
        self.runner = ModelRunner(num_blocks, 4, propose, lookahead)
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
def make_drafting() -> type[Drafting]:
    return Drafting


@pytest.fixture(scope="session")
def make_random_drafting() -> type[RandomDrafting]:
    return RandomDrafting


@pytest.fixture(scope="session")
def make_driver() -> Callable[..., Driver]:
    return Driver
