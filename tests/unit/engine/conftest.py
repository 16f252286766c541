"""An engine whose model is a function of the tokens so far."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quire.api.config import EngineConfig
from quire.api.extensions import EngineObserver, RequestView, SchedulingPolicy, StepReport
from quire.api.request import SamplingParams
from quire.api.step import RowResult, StepPlan, StepResult
from quire.engine.engine import Engine
from quire.engine.guarded_policy import GuardedPolicy
from quire.engine.inputs import InputProcessor
from quire.engine.observers import Observers
from quire.engine.parts import EngineParts
from quire.execution.executor import InProcessExecutor
from quire.kvcache.block_manager import BlockManager
from quire.plugins.calls import PluginCalls
from quire.plugins.host import PluginHost
from quire.scheduling.plan import SchedulerLimits
from quire.scheduling.policies import FcfsPolicy, PriorityPolicy
from quire.scheduling.scheduler import Scheduler

VOCAB = 26
EOS = 0


class Letters:
    """Token 0 is EOS, token 1 is "b" and so on."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(char) - 97 for char in text]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(chr(97 + token_id) for token_id in token_ids)


def next_token(token_ids: list[int]) -> int:
    return hash(tuple(token_ids)) % (VOCAB - 1) + 1


class Watcher(EngineObserver):
    """Sees all, does nothing."""

    def request_added(self, request: RequestView) -> None:
        pass

    def step_finished(self, step: StepReport) -> None:
        pass

    def request_finished(self, request: RequestView, finish_reason: str) -> None:
        pass


class HashRunner:
    """Samples a hash of all tokens so far. Plans come in order, and rows where the last one ended."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.slots: dict[int, list[int]] = {}
        self.tables: dict[int, list[int]] = {}
        self.names: dict[int, str] = {}
        self.is_closed = False

    def run(self, plan: StepPlan) -> StepResult:
        for assignment in plan.assignments:
            self.slots[assignment.slot] = list(assignment.token_ids)
            self.tables[assignment.slot] = []
            self.names[assignment.slot] = assignment.request_id
        for update in plan.table_updates:
            self.tables[update.slot][update.first_index :] = update.block_ids
        results = []
        for row in plan.rows:
            token_ids = self.slots[row.slot]
            end = row.start + row.num_tokens
            assert end <= len(token_ids) and row.is_sampled == (end == len(token_ids))
            assert end <= len(self.tables[row.slot]) * self.block_size
            sampled = [next_token(token_ids)] if row.is_sampled else []
            token_ids += sampled
            results.append(RowResult(row.slot, sampled))
        return StepResult(plan.step_id, results)

    def close(self) -> None:
        self.is_closed = True


class LatePending:
    """A step that runs until its result is asked for."""

    def __init__(self, executor: LateExecutor, plan: StepPlan) -> None:
        self._executor = executor
        self.plan = plan

    def result(self) -> StepResult:
        executor, step_id = self._executor, self.plan.step_id
        executor.timeline.append(f"read {step_id}")
        if self in executor.running:
            del executor.running[: executor.running.index(self) + 1]  # those before it are void
        if step_id in executor.bad_results:
            raise RuntimeError(f"planted in step {step_id}")
        return executor.results[step_id]


class LateExecutor:
    """A slow device: steps run in order, and their results come late.

    Attributes:
        timeline: what was called, in order. running: submitted, and nobody has asked for the result.
        bad_submits, bad_results: steps whose submission or result fails.
        engine: whose requests' blocks are watched.
    """

    def __init__(self, runner: HashRunner) -> None:
        self.runner = runner
        self.timeline: list[str] = []
        self.running: list[LatePending] = []
        self.results: dict[int, StepResult] = {}
        self.bad_submits: set[int] = set()
        self.bad_results: set[int] = set()
        self.engine: Engine
        self.written: dict[int, dict[int, str]] = {}  # per running step: who writes which block

    def submit(self, plan: StepPlan) -> LatePending:
        self.timeline.append(f"submit {plan.step_id}")
        if plan.step_id in self.bad_submits:
            raise RuntimeError(f"planted in step {plan.step_id}")
        self._check_blocks(plan)
        self.results[plan.step_id] = self.runner.run(plan)
        self.running.append(LatePending(self, plan))
        size = self.runner.block_size
        self.written[plan.step_id] = {
            block: self.runner.names[row.slot]
            for row in plan.rows
            for block in self.runner.tables[row.slot][
                row.start // size : -(-(row.start + row.num_tokens) // size)
            ]
        }
        return self.running[-1]

    def _check_blocks(self, plan: StepPlan) -> None:
        """No block that a running step writes goes to somebody else, but those of preempted requests."""
        scheduler = self.engine._scheduler
        for pending in (each for each in self.running if scheduler.is_in_flight(each.plan)):
            for update in plan.table_updates:
                name = next(
                    (each.request_id for each in plan.assignments if each.slot == update.slot),
                    self.runner.names.get(update.slot),
                )
                for block in update.block_ids:
                    writer = self.written[pending.plan.step_id].get(block, name)
                    assert writer == name or self._is_going_on(writer), (
                        f"{name} got block {block} of {writer}"
                    )

    def _is_going_on(self, request_id: str) -> bool:
        owner = self.engine._book.owner(request_id)
        return owner is not None and not owner.request(request_id).is_finished

    def close(self) -> None:
        assert not self.running, "the engine was closed while a step runs"
        self.runner.close()


def build(
    num_blocks: int = 24,
    *,
    max_model_len: int = 32,
    budget: int = 12,
    policy: str = "fcfs",
    has_text: bool = True,
    has_plugins: bool = False,
    is_late: bool = False,
) -> Engine:
    manager = BlockManager(num_blocks, 4)
    limits = SchedulerLimits(4, budget, max_model_len)
    tokenizer = Letters() if has_text else None
    ordering: SchedulingPolicy = {"fcfs": FcfsPolicy, "priority": PriorityPolicy}[policy]()
    calls, failures = PluginCalls(), {}
    attached = [("watch", Watcher())] if has_plugins else []
    if has_plugins:
        ordering = GuardedPolicy(policy, "orders", "plugin 'orders' (a test)", ordering, calls, failures)
    runner = HashRunner(4)
    executor = LateExecutor(runner) if is_late else InProcessExecutor(runner)
    engine = Engine(
        EngineParts(
            config=EngineConfig(),
            host=PluginHost(),
            inputs=InputProcessor(VOCAB, max_model_len, tokenizer),
            scheduler=Scheduler(limits, manager, ordering),
            executor=executor,
            tokenizer=tokenizer,  # type: ignore[arg-type]  # a fake
            eos_token_ids=frozenset([EOS]),
            observers=Observers(attached, calls, limit_s=60.0),
            failures=failures,
        )
    )
    if isinstance(executor, LateExecutor):
        executor.engine = engine
    return engine


def expected(prompt: list[int], max_tokens: int) -> list[int]:
    token_ids = list(prompt)
    for _ in range(max_tokens):
        token_ids.append(next_token(token_ids))
    return token_ids[len(prompt) :]


def run_all(engine: Engine) -> None:
    for _ in range(200):
        if not engine.has_unfinished:
            return
        engine.step()
    raise AssertionError("not done after 200 steps")


@pytest.fixture(scope="session")
def make_engine() -> Callable[..., Engine]:
    return build


@pytest.fixture(scope="session")
def expected_tokens() -> Callable[[list[int], int], list[int]]:
    return expected


@pytest.fixture(scope="session")
def finish_all() -> Callable[[Engine], None]:
    return run_all


@pytest.fixture
def greedy() -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=5)
