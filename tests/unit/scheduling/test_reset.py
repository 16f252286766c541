"""A reset in any state: all requests end, nothing is held, the counters go on, new requests run right."""

from __future__ import annotations

import pytest

from quire.api.errors import StepError
from quire.api.request import FinishReason, RequestStatus

ERROR = StepError("planted")


def busy(make_driver, late=1):
    """Running, waiting, preempted, parked, ended but in flight: one of each, and plans not updated."""
    driver = make_driver(6, max_num_seqs=3, late=late)
    leader = driver.add([1] * 9, max_tokens=12)
    driver.add([1] * 9, max_tokens=12, fork_of=leader)
    driver.add([2] * 5, max_tokens=12)
    driver.add([1, 2, 1], max_tokens=12)
    driver.add([2, 2, 1], max_tokens=12)
    return driver


@pytest.mark.parametrize("num_steps", range(12))
@pytest.mark.parametrize("late", [0, 1])
def test_a_reset_ends_all_and_holds_nothing(make_driver, num_steps, late):
    driver = busy(make_driver, late)
    for _ in range(num_steps):
        driver.step()
    scheduler = driver.scheduler
    before = scheduler.stats()
    unfinished = [request for request in driver.requests if not request.is_finished]
    scheduler.reset(FinishReason.ABORT, ERROR)
    driver.pending.clear()
    scheduler.check_invariants()
    assert unfinished and not scheduler.has_unfinished
    for request in unfinished:
        assert request.is_finished and request.slot is None and request.num_in_flight == 0
        assert (request.finish_reason, request.error) == (FinishReason.ABORT, ERROR)
    usage = driver.manager.usage()
    assert (usage.num_used_blocks, usage.num_cached_blocks) == (0, 0)
    after = scheduler.stats()
    assert (after.num_steps, after.num_preemptions) == (before.num_steps, before.num_preemptions)
    assert scheduler.schedule().rows == []
    again = [driver.add(list(request.prompt_token_ids), max_tokens=6) for request in list(driver.requests)]
    driver.run()
    driver.check_outputs()
    assert all(request.finish_reason is FinishReason.LENGTH for request in again)


def test_the_states_that_a_reset_met(make_driver):
    """The case above covers what it says: every status occurs in its steps."""
    driver, seen = busy(make_driver), set()
    for _ in range(12):
        driver.step()
        seen |= {request.status for request in driver.requests}
    assert {RequestStatus.WAITING, RequestStatus.RUNNING, RequestStatus.PREEMPTED} <= seen


def test_a_request_that_had_ended_keeps_its_reason(make_driver):
    driver = make_driver(late=1)
    request = driver.add([1, 2], max_tokens=4)
    driver.step()
    assert driver.abort(request)
    driver.scheduler.reset(FinishReason.ERROR, ERROR)
    assert (request.finish_reason, request.error) == (FinishReason.ABORT, None)
    driver.scheduler.check_invariants()


def test_a_plan_is_in_flight_until_it_is_updated(make_driver):
    driver = make_driver()
    driver.add([1, 2], max_tokens=4)
    plan = driver.scheduler.schedule()
    assert driver.scheduler.is_in_flight(plan)
    driver.scheduler.update(plan, driver.runner.execute(plan))
    assert not driver.scheduler.is_in_flight(plan)
