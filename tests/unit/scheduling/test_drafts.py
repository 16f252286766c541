"""Drafts in the scheduler: how many are planned, and what becomes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quire.api.errors import StepError
from quire.api.request import FinishReason, RequestStatus
from quire.api.step import StepResult, TokenLogprobs


def rows_of(plan):
    return [(row.slot, row.start, row.num_tokens, row.num_drafts) for row in plan.rows]


def test_accepted_drafts_come_with_the_token_after_them(make_driver, make_drafting):
    driver = make_driver(propose=make_drafting(3))
    request = driver.add([1, 2, 0, 1, 2], max_tokens=9)
    plan = driver.step()
    assert plan.is_drafting and rows_of(plan) == [(0, 0, 5, 0)]
    plan = driver.step()
    assert rows_of(plan) == [(0, 5, 4, 3)] and plan.rows[0].is_sampled and plan.num_tokens == 4
    assert len(driver.updates[-1].new_token_ids) == 4
    assert (request.num_tokens, request.num_computed_tokens, request.num_in_flight) == (10, 9, 0)
    assert rows_of(driver.step()) == [(0, 9, 4, 3)]
    assert request.finish_reason is FinishReason.LENGTH
    driver.check_outputs()
    assert driver.scheduler.stats().num_scheduled_tokens == 13


@pytest.mark.parametrize("wrong_at", [0, 1, 2])
def test_what_was_computed_of_rejected_drafts_is_computed_again(make_driver, make_drafting, wrong_at):
    driver = make_driver(propose=make_drafting(3, wrong_at))
    request = driver.add([1, 2, 0, 1, 2], max_tokens=20)
    driver.step()
    driver.step()
    assert len(driver.updates[-1].new_token_ids) == wrong_at + 1
    assert request.num_computed_tokens == 6 + wrong_at == request.num_tokens - 1
    assert rows_of(driver.step()) == [(0, 6 + wrong_at, 4, 3)]
    driver.run()
    driver.check_outputs()
    kind = "rejected" if wrong_at == 0 else "partly"
    assert driver.runner.draft_counts[kind] >= 3


@pytest.mark.parametrize(
    ("budget", "num_tokens"),
    [(24, [5, 5, 5]), (13, [5, 5, 3]), (9, [5, 3, 1]), (8, [5, 2, 1]), (5, [3, 1, 1]), (3, [1, 1, 1])],
)
def test_drafts_leave_a_token_for_each_request_after_them(make_driver, make_drafting, budget, num_tokens):
    driver = make_driver(num_blocks=16, budget=budget, propose=make_drafting(4))
    for first in range(3):
        driver.add([first], max_tokens=30)
    driver.step()
    plan = driver.step()
    assert [row.num_tokens for row in plan.rows] == num_tokens
    assert [row.num_drafts for row in plan.rows] == [count - 1 for count in num_tokens]
    driver.run()
    driver.check_outputs()


def test_drafts_come_after_running_and_waiting_requests(make_driver, make_drafting):
    driver = make_driver(num_blocks=16, budget=6, propose=make_drafting(4))
    driver.add([1], max_tokens=20)
    driver.step()
    driver.add([2, 2, 2], max_tokens=2)
    assert rows_of(driver.step()) == [(0, 1, 3, 2), (1, 0, 3, 0)]
    driver.run()
    driver.check_outputs()


def test_nobody_is_preempted_for_drafts(make_driver, make_drafting):
    driver = make_driver(num_blocks=3, propose=make_drafting(4))
    driver.add([1] * 3, max_tokens=9)
    driver.add([2] * 3, max_tokens=9)
    driver.step()
    assert rows_of(driver.step()) == [
        (0, 3, 5, 4),
        (1, 3, 1, 0),
    ]  # the third block went to the first's drafts
    assert driver.scheduler.stats().num_preemptions == 0
    driver.run()
    driver.check_outputs()


def test_blocks_of_rejected_drafts_are_taken_back_before_anybody_is_preempted(make_driver, make_drafting):
    driver = make_driver(num_blocks=3, propose=make_drafting(4, wrong_at=0))
    first = driver.add([1], max_tokens=9)
    driver.add([2] * 3, max_tokens=4)
    driver.step()
    driver.scheduler.set_drafting(False)
    assert rows_of(driver.step()) == [(0, 1, 5, 4), (1, 3, 1, 0)]
    assert first.num_computed_tokens == 2 and len(driver.manager.block_ids(first)) == 2
    surplus = driver.manager.block_ids(first)[1]
    plan = driver.step()
    assert rows_of(plan) == [(0, 2, 1, 0), (1, 4, 1, 0)]
    updates = [(update.slot, update.first_index, update.block_ids) for update in plan.table_updates]
    assert updates == [(0, 1, []), (1, 1, [surplus])]
    assert driver.scheduler.stats().num_preemptions == 0
    driver.run()
    driver.check_outputs()


def test_lookahead_is_planned_where_there_is_room_and_given_back(make_driver, make_drafting):
    driver = make_driver(num_blocks=4, propose=make_drafting(0), lookahead=4)
    first = driver.add([1], max_tokens=10)
    second = driver.add([2] * 2, max_tokens=10)
    driver.step()
    driver.step()
    assert [len(driver.manager.block_ids(request)) for request in (first, second)] == [2, 2]
    driver.run()
    assert driver.scheduler.stats().num_preemptions == 1  # three blocks each do not fit, whatever is cut
    driver.check_outputs()


def test_a_preempted_request_has_no_drafts(make_driver, make_drafting):
    driver = make_driver(num_blocks=5, caching=False, propose=make_drafting(3, wrong_at=0))
    driver.add([1] * 5, max_tokens=12)
    last = driver.add([2] * 5, max_tokens=8)
    while not last.num_preemptions:
        plan = driver.step()
    assert last.status is RequestStatus.PREEMPTED
    assert all(update.slot == 0 for update in plan.table_updates)
    while last.status is not RequestStatus.RUNNING:
        plan = driver.step()
    assert [(row.start, row.num_drafts) for row in plan.rows][-1] == (0, 0)
    driver.run()
    driver.check_outputs()


def test_a_request_whose_drafts_are_being_verified_waits_for_them(make_driver, make_drafting):
    driver = make_driver(num_blocks=16, propose=make_drafting(2, wrong_at=1))
    scheduler, runner = driver.scheduler, driver.runner
    driver.add([1, 2], max_tokens=8)
    driver.step()
    verifying = scheduler.schedule()
    assert rows_of(verifying) == [(0, 2, 3, 2)]
    result = runner.execute(verifying)
    driver.add([2, 0, 0], max_tokens=3)
    other = scheduler.schedule()
    assert rows_of(other) == [(1, 0, 3, 0)]
    scheduler.check_invariants()
    other_result = runner.execute(other)
    assert scheduler.schedule().rows[0].slot == 1 and len(scheduler._in_flight) == 3
    [update] = scheduler.update(verifying, result)
    assert len(update.new_token_ids) == 2 and update.request.num_computed_tokens == 4
    scheduler.check_invariants()
    later = scheduler.schedule()
    assert rows_of(later)[0] == (0, 4, 3, 2)
    scheduler.update(other, other_result)
    scheduler.check_invariants()


@pytest.mark.parametrize("way", ["abort", "preempt"])
def test_a_request_that_leaves_while_its_drafts_are_verified(make_driver, make_drafting, way):
    driver = make_driver(num_blocks=4, caching=False, propose=make_drafting(2))
    driver.add([1, 2, 2, 1], max_tokens=8)
    request = driver.add([2, 0], max_tokens=8)
    driver.step()
    plan = driver.scheduler.schedule()
    assert [row.num_drafts for row in plan.rows] == [2, 2]
    result = driver.runner.execute(plan)
    if way == "abort":
        assert driver.abort(request) and request.slot == 1
    else:
        driver.scheduler._requests.preempt(driver.scheduler._requests.find("r1"))
        assert request.slot is None
    driver.scheduler.check_invariants()
    updates = driver.scheduler.update(plan, result)
    driver.scheduler.check_invariants()
    assert [update.request.request_id for update in updates] == (["r0"] if way == "abort" else ["r0", "r1"])
    assert len(request.output_token_ids) == (1 if way == "abort" else 4)
    assert driver.scheduler.schedule().released_slots == [1]


def stopping_prompt(make_driver, position):
    """A prompt whose output has the first stop token at this position."""
    for seed in range(500):
        driver = make_driver()
        prompt = [seed % 3, seed // 3 % 3, seed // 9 % 3, seed // 27 % 3, seed // 81 % 3]
        request = driver.add(prompt, max_tokens=9, stops=True)
        driver.run()
        if request.finish_reason is FinishReason.STOP and len(request.output_token_ids) == position + 1:
            return prompt
    raise AssertionError("no such prompt")


@pytest.mark.parametrize("position", [1, 2, 3, 4])
def test_a_stop_token_within_accepted_drafts_drops_the_rest(make_driver, make_drafting, position):
    driver = make_driver(propose=make_drafting(4))
    request = driver.add(stopping_prompt(make_driver, position), max_tokens=20, stops=True)
    driver.step()
    plan = driver.scheduler.schedule()
    result = driver.runner.execute(plan)
    [row] = result.rows
    assert len(row.token_ids) == 5
    entries = [TokenLogprobs(token_id, -1.0, 1, [], []) for token_id in row.token_ids]
    [update] = driver.scheduler.update(plan, StepResult(plan.step_id, [replace(row, logprobs=entries)]))
    assert update.is_finished and request.finish_reason is FinishReason.STOP
    assert update.new_token_ids == row.token_ids[:position] and update.logprobs == entries[:position]
    assert len(request.output_token_ids) == position + 1
    driver.check_outputs()
    metrics = request.speculation
    assert metrics is not None
    assert metrics.num_accepted_tokens == 4
    assert driver.manager.usage().num_used_blocks == 0


@pytest.mark.parametrize(
    ("max_tokens", "drafts"), [(2, [0, 0]), (3, [0, 1]), (5, [0, 3]), (6, [0, 4]), (7, [0, 4, 0])]
)
def test_drafts_end_before_max_tokens(make_driver, make_drafting, max_tokens, drafts):
    driver = make_driver(propose=make_drafting(4))
    request = driver.add([1, 2, 0], max_tokens=max_tokens)
    found = []
    while driver.scheduler.has_unfinished:
        found += [row.num_drafts for row in driver.step().rows]
    assert found == drafts
    assert request.finish_reason is FinishReason.LENGTH and len(request.output_token_ids) == max_tokens
    driver.check_outputs()


def test_drafts_end_before_the_kv_cache_does(make_driver, make_drafting):
    driver = make_driver(num_blocks=2, propose=make_drafting(4))
    request = driver.add([1, 2, 0, 1], max_tokens=50)
    driver.run()
    assert request.finish_reason is FinishReason.LENGTH and request.num_tokens == 9
    driver.check_outputs()


def test_only_verified_tokens_enter_the_prefix_cache(make_driver, make_drafting):
    driver = make_driver(num_blocks=16, propose=make_drafting(4, wrong_at=1))
    first = driver.add([1, 2, 0], max_tokens=9)
    driver.step()
    plan = driver.scheduler.schedule()
    assert rows_of(plan) == [(0, 3, 5, 4)]  # fills two blocks, of which one has known tokens only
    assert driver.manager.usage().num_cached_blocks == 1
    spoiled = first.token_ids() + driver.runner.slots[0].drafts
    driver.pending.append((plan, driver.runner.execute(plan)))
    driver.update()
    assert driver.manager.usage().num_cached_blocks == 1
    second = driver.add([*spoiled, 0], max_tokens=2)
    driver.run()
    assert second.num_cached_tokens == 4
    third = driver.add([*first.token_ids()[:11], 0], max_tokens=2)
    driver.run()
    assert third.num_cached_tokens == 8
    driver.check_outputs()


def test_slots_are_released_once(make_driver, make_drafting):
    driver = make_driver(num_blocks=16, propose=make_drafting(2))
    ended = driver.add([1], max_tokens=1)
    driver.add([2], max_tokens=20)
    assert driver.step().released_slots == []
    assert ended.is_finished
    assert driver.step().released_slots == [0]
    assert driver.step().released_slots == []
    driver.add([0], max_tokens=4)
    plan = driver.step()
    assert [assignment.slot for assignment in plan.assignments] == [0] and plan.released_slots == []


def test_a_plan_without_rows_keeps_released_slots_for_the_next(make_driver, make_drafting):
    driver = make_driver(propose=make_drafting(2))
    driver.add([1], max_tokens=1)
    driver.step()
    assert driver.step().released_slots == []
    driver.add([2], max_tokens=1)
    assert driver.step().released_slots == [0]


def test_more_tokens_than_a_row_can_give_are_refused(make_driver, make_drafting):
    driver = make_driver(propose=make_drafting(2))
    request = driver.add([1, 2, 0], max_tokens=9)
    driver.step()
    plan = driver.scheduler.schedule()
    result = driver.runner.execute(plan)
    [row] = result.rows
    too_many = replace(row, token_ids=[0, 1, 2, 0])
    before = (request.num_tokens, request.num_computed_tokens, request.num_in_flight)
    for bad, text in (
        (too_many, "4 tokens for 2 drafts"),
        (replace(row, token_ids=[]), "neither token nor error"),
    ):
        with pytest.raises(StepError, match=text):
            driver.scheduler.update(plan, StepResult(plan.step_id, [bad]))
        assert (request.num_tokens, request.num_computed_tokens, request.num_in_flight) == before
    driver.scheduler.update(plan, result)
    driver.run()
    driver.check_outputs()


def test_drafting_is_turned_off_and_on(make_driver, make_drafting):
    driver = make_driver(propose=make_drafting(2))
    driver.add([1, 2, 0], max_tokens=20)
    driver.step()
    driver.scheduler.set_drafting(False)
    plan = driver.step()
    assert not plan.is_drafting and plan.rows[0].num_drafts == 2  # at hand already
    assert driver.step().rows[0].num_drafts == 0
    driver.scheduler.set_drafting(True)
    assert driver.step().rows[0].num_drafts == 0
    assert driver.step().rows[0].num_drafts == 2
    driver.run()
    driver.check_outputs()


def test_counts(make_driver, make_drafting):
    assert make_driver().scheduler.stats().speculation is None
    driver = make_driver(num_blocks=16, propose=make_drafting(3, wrong_at=2))
    request = driver.add([1, 2, 0], max_tokens=12)
    other = driver.add([2], max_tokens=1)
    driver.run()
    total, own = driver.scheduler.stats().speculation, request.speculation
    assert other.speculation is None and own == total and own is not None
    # 1 token from the prompt, then 3 a step: drafts of 3, 3, 3 and, for the last 2 tokens, 1.
    assert (own.num_drafts, own.num_draft_tokens, own.num_accepted_tokens) == (4, 10, 7)
    assert own.num_accepted_tokens_per_pos == [4, 3, 0]


def test_with_more_running_requests_than_the_limit_nothing_is_drafted(make_driver, make_drafting):
    driver = make_driver(num_blocks=16, budget=4, propose=make_drafting(2))
    scheduler = driver.scheduler
    scheduler.limits = replace(scheduler.limits, max_drafting_requests=1)
    driver.add([1], max_tokens=9)
    assert driver.step().is_drafting
    driver.add([2] * 9, max_tokens=2)  # its prompt takes several steps, in which only the first gets tokens
    assert [driver.step().is_drafting for _ in range(2)] == [False, False]
    driver.run()
    driver.check_outputs()
