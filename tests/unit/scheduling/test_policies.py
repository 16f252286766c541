"""Policies: built-in ones, and exchanging one for another while requests wait and run."""

from __future__ import annotations

import pytest

from quire.api.extensions import RequestView
from quire.api.request import FinishReason
from quire.api.step import RowResult, StepResult
from quire.scheduling.policies import FcfsPolicy, PriorityPolicy, view_of


class LastFirst:
    def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]:
        return (-arrival_index,)


class Failing:
    """Fails at one request."""

    def __init__(self, arrival_index: int) -> None:
        self.arrival_index = arrival_index

    def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]:
        if arrival_index == self.arrival_index:
            raise KeyboardInterrupt
        return (-arrival_index,)


def running_ids(driver) -> list[str]:
    return [state.request.request_id for state in driver.scheduler._requests.running]


def test_keys_of_the_built_in_policies(make_driver):
    driver = make_driver()
    request = driver.add([1, 2], priority=3)
    fcfs, priority = FcfsPolicy(), PriorityPolicy()
    assert fcfs.key(view_of(request), 5) > fcfs.key(view_of(request), 4)
    assert priority.key(view_of(request), 0) == (3, True, 0)
    driver.step()
    request.output_token_ids.append(1)
    state = driver.scheduler._requests.running[0]
    driver.scheduler._requests.preempt(state)
    view = view_of(request)
    assert (view.is_preempted, view.num_preemptions, view.num_prompt_tokens) == (True, 1, 2)
    assert view.num_tokens == 2 + view.num_output_tokens
    assert fcfs.key(view, 9) < (True, 0)


def test_another_policy_orders_the_waiting_and_the_running(make_driver):
    driver = make_driver(num_blocks=32, max_num_seqs=2)
    requests = [driver.add([1, 2, index], max_tokens=6) for index in range(5)]
    driver.step()
    assert running_ids(driver) == ["r0", "r1"]
    driver.abort(requests[3])  # leaves a stale ticket behind
    driver.scheduler.set_policy(LastFirst())
    driver.scheduler.check_invariants()
    assert running_ids(driver) == ["r1", "r0"]
    driver.abort(requests[0])
    driver.step()
    assert running_ids(driver) == ["r4", "r1"]
    driver.run()
    driver.check_outputs()


def test_forks_that_wait_for_their_leader_stay_parked(make_driver):
    driver = make_driver(num_blocks=32, budget=3)
    leader = driver.add([1, 2, 3, 4, 5])
    driver.add([1, 2, 3, 4, 5], fork_of=leader)
    driver.step()
    driver.scheduler.set_policy(LastFirst())
    assert (driver.scheduler.num_running, driver.scheduler.num_waiting) == (1, 1)
    driver.scheduler.check_invariants()
    driver.run()
    driver.check_outputs()


@pytest.mark.parametrize("bad", [0, 3])
def test_a_policy_that_raises_changes_nothing(make_driver, bad):
    driver = make_driver(num_blocks=32, max_num_seqs=2)
    for index in range(5):
        driver.add([1, 2, index], max_tokens=6)
    driver.step()
    with pytest.raises(KeyboardInterrupt):
        driver.scheduler.set_policy(Failing(bad))
    driver.scheduler.check_invariants()
    assert running_ids(driver) == ["r0", "r1"]
    assert driver.scheduler._requests.waiting.peek().request.request_id == "r2"
    driver.run()
    driver.check_outputs()


def result_of(plan, errors: dict[int, tuple[str, str | None]]) -> StepResult:
    rows = []
    for row in plan.rows:
        error, plugin = errors.get(row.slot, (None, None))
        rows.append(RowResult(row.slot, [] if error else [1], error=error, failed_plugin=plugin))
    return StepResult(plan.step_id, rows)


@pytest.mark.parametrize("plugin", [None, "bad"])
def test_what_a_plugin_did_to_logits_leaves_kv_good(make_driver, plugin):
    """Both share the first block in one step; the one that computes it fails."""
    driver = make_driver(num_blocks=32)
    first = driver.add([1, 2, 3, 0, 1], max_tokens=4)
    second = driver.add([1, 2, 3, 0, 2], max_tokens=4)
    plan = driver.scheduler.schedule()
    assert plan.num_tokens == 5 + 1
    updates = driver.scheduler.update(plan, result_of(plan, {0: ("planted", plugin)}))
    assert [(update.request, update.is_finished) for update in updates][0] == (first, True)
    assert first.finish_reason is FinishReason.ERROR and "planted" in str(first.error)
    assert type(first.error).__name__ == ("NumericalError" if plugin is None else "ExtensionError")
    assert second.num_preemptions == (1 if plugin is None else 0)
    assert len(second.output_token_ids) == (0 if plugin is None else 1)
    cached = driver.manager.usage().num_cached_blocks
    assert cached == (0 if plugin is None else 1)
    driver.scheduler.check_invariants()


def test_a_plugin_s_failure_beside_a_numerical_one(make_driver):
    driver = make_driver(num_blocks=32)
    requests = [driver.add([index, 2, 3, 0, 1], max_tokens=4) for index in range(3)]
    plan = driver.scheduler.schedule()
    driver.scheduler.update(plan, result_of(plan, {0: ("nan", None), 1: ("planted", "bad")}))
    kinds = [type(request.error).__name__ for request in requests]
    assert kinds == ["NumericalError", "ExtensionError", "NoneType"]
    driver.scheduler.check_invariants()
