from __future__ import annotations

import pytest

from quire.api.errors import CapacityError, ConfigError, NumericalError, PromptError, StepError
from quire.api.request import FinishReason, RequestStatus
from quire.api.step import RowResult, StepResult, TokenLogprobs
from quire.scheduling.plan import SchedulerLimits

BOTH_MODES = pytest.mark.parametrize("late", [False, True], ids=["sync", "late"])


def test_one_request_is_computed_whole_then_token_by_token(make_driver):
    driver = make_driver()
    request = driver.add([1, 2, 0, 1, 2], max_tokens=3)
    plan = driver.step()
    assert [(row.slot, row.start, row.num_tokens, row.is_sampled) for row in plan.rows] == [(0, 0, 5, True)]
    assert plan.assignments[0].token_ids == [1, 2, 0, 1, 2]
    assert [(u.slot, u.first_index, u.block_ids) for u in plan.table_updates] == [(0, 0, [0, 1])]
    assert driver.slots_of(driver.step()) == [(0, 5, 1)]
    assert driver.run() == 1
    assert request.finish_reason is FinishReason.LENGTH
    assert len(request.output_token_ids) == 3
    assert driver.manager.usage().num_used_blocks == 0
    assert driver.scheduler.stats().num_steps == 3
    driver.check_outputs()


def test_prompt_is_chunked_by_the_budget_and_decodes_come_first(make_driver):
    driver = make_driver(budget=4)
    driver.add([1], max_tokens=8)
    driver.step()
    driver.add([2, 2, 2, 2, 2, 2], max_tokens=2)
    assert driver.slots_of(driver.step()) == [(0, 1, 1), (1, 0, 3)]
    plan = driver.step()
    assert driver.slots_of(plan) == [(0, 2, 1), (1, 3, 3)]
    assert [row.is_sampled for row in plan.rows] == [True, True]
    driver.run()
    driver.check_outputs()


def test_without_chunked_prefill_a_prompt_waits_for_a_whole_budget(make_driver):
    driver = make_driver(budget=6, chunked=False)
    driver.add([1] * 3, max_tokens=3)
    driver.add([2] * 5, max_tokens=2)
    driver.add([2], max_tokens=1)
    assert driver.slots_of(driver.step()) == [(0, 0, 3)]  # 5 do not fit, and nobody overtakes
    assert driver.slots_of(driver.step()) == [(0, 3, 1), (1, 0, 5)]
    driver.run()
    driver.check_outputs()
    with pytest.raises(CapacityError, match="7 tokens exceeds max_num_batched_tokens=6"):
        driver.add([1] * 7)


def test_recompute_longer_than_the_budget_is_chunked_even_so(make_driver):
    driver = make_driver(num_blocks=4, budget=6, chunked=False, caching=False)
    driver.add([1] * 5, max_tokens=9)
    victim = driver.add([2] * 4, max_tokens=9)
    driver.run()
    assert victim.num_preemptions >= 1 and victim.finish_reason is FinishReason.LENGTH
    driver.check_outputs()


def test_same_plan_shares_a_prefix_that_it_computes(make_driver):
    driver = make_driver(num_blocks=16)
    prefix = [1, 2, 3, 0, 1, 1, 1, 1]
    requests = [driver.add([*prefix, tail], max_tokens=2) for tail in range(3)]
    plan = driver.step()
    assert driver.slots_of(plan) == [(0, 0, 9), (1, 8, 1), (2, 8, 1)]
    assert [u.block_ids for u in plan.table_updates] == [[0, 1, 2], [0, 1, 8], [0, 1, 3]]
    assert [request.num_cached_tokens for request in requests] == [0, 8, 8]
    driver.run()
    stats = driver.scheduler.stats()
    assert (stats.num_query_tokens, stats.num_hit_tokens) == (27, 16)
    driver.check_outputs()


def test_capacity_exact_and_one_over(make_driver):
    driver = make_driver(num_blocks=2)
    assert driver.manager.max_servable_tokens == 9
    exact = driver.add([1] * 8, max_tokens=50)
    assert exact.max_total_tokens == 9
    driver.run()
    assert exact.finish_reason is FinishReason.LENGTH and len(exact.output_token_ids) == 1
    growing = driver.add([2] * 3, max_tokens=50)
    driver.run()
    assert growing.finish_reason is FinishReason.LENGTH and growing.num_tokens == 9
    with pytest.raises(CapacityError, match="9 tokens and 1 output token can never fit.*9 tokens"):
        driver.add([1] * 9)
    driver.check_outputs()


def test_refusals_change_nothing(make_driver):
    driver = make_driver(max_model_len=6)
    first = driver.add([1, 2])
    with pytest.raises(PromptError, match="empty"):
        driver.add([])
    with pytest.raises(CapacityError, match="max_model_len=6"):
        driver.add([1] * 6)
    with pytest.raises(PromptError, match="fork"):
        driver.add([1, 3], fork_of=first)
    with pytest.raises(PromptError, match="in use"):
        driver.scheduler.add(first)
    assert driver.scheduler.num_waiting == 1
    with pytest.raises(ConfigError, match="max_num_seqs=0"):
        SchedulerLimits(0, 1, 10)


@BOTH_MODES
def test_preemption_takes_the_last_and_it_resumes(make_driver, late):
    driver = make_driver(num_blocks=5, late=late)
    first = driver.add([1] * 5, max_tokens=10)
    last = driver.add([2] * 5, max_tokens=10)
    while not driver.scheduler.stats().num_preemptions:
        plan = driver.step()
        assert driver.scheduler.num_running > 0
    assert last.status is RequestStatus.PREEMPTED and last.slot is None
    assert not plan.assignments
    assert first.num_preemptions == 0
    driver.run()
    assert last.num_preemptions == 1
    driver.check_outputs()


def test_reserve_leaves_a_block_to_grow_for_each_running_request(make_driver):
    driver = make_driver(num_blocks=4)
    driver.add([1] * 4, max_tokens=6)
    driver.add([2] * 4, max_tokens=2)
    driver.add([3] * 4, max_tokens=2)
    assert len(driver.step().rows) == 2
    driver.run()
    assert driver.scheduler.stats().num_preemptions == 0
    driver.check_outputs()


def test_priority_orders_admission_and_preemption(make_driver):
    driver = make_driver(num_blocks=6, max_num_seqs=2, policy="priority", caching=False)
    low = driver.add([1] * 5, max_tokens=12, priority=5)
    high = driver.add([2] * 5, max_tokens=12, priority=1)
    middle = driver.add([0] * 5, max_tokens=2, priority=3)
    plan = driver.step()
    assert [a.request_id for a in plan.assignments] == [high.request_id, middle.request_id]
    driver.run()
    assert driver.scheduler.stats().num_preemptions == low.num_preemptions == 1
    assert high.num_preemptions == middle.num_preemptions == 0
    driver.check_outputs()


def test_a_better_request_admitted_later_is_planned_first(make_driver):
    driver = make_driver(num_blocks=16, budget=2, policy="priority")
    driver.add([1], max_tokens=20, priority=9)
    driver.step()
    high = driver.add([2] * 3, max_tokens=3, priority=0)
    driver.step()
    assert driver.slots_of(driver.step()) == [(1, 1, 2)]
    driver.run()
    assert [update.request for update in driver.updates if update.is_finished][0] is high
    driver.check_outputs()


@BOTH_MODES
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_tiny_budgets_starve_nobody(make_driver, budget, late):
    driver = make_driver(num_blocks=16, budget=budget, max_num_seqs=4, late=late)
    for index in range(6):
        driver.add([index % 3, 1, 2], max_tokens=4)
    num_steps = driver.run()
    assert num_steps >= 6 * 4 // budget
    assert all(request.finish_reason is FinishReason.LENGTH for request in driver.requests)
    driver.check_outputs()


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("num_prompt", [1, 2, 4, 5, 6, 8])
@BOTH_MODES
def test_forks_share_all_of_the_prompt_but_one_token(make_driver, caching, num_prompt, late):
    driver = make_driver(num_blocks=32, caching=caching, late=late)
    prompt = [1, 2, 0, 2, 1, 1, 0, 2][:num_prompt]
    leader = driver.add(prompt, max_tokens=6)
    children = [driver.add(prompt, max_tokens=6, fork_of=leader) for _ in range(3)]
    behind = driver.add([3, 3], max_tokens=1)
    plan = driver.step()
    assert [a.request_id for a in plan.assignments] == [leader.request_id, behind.request_id]
    driver.step()
    if driver.scheduler.num_running < 4:  # the slot of the request behind was busy
        driver.step()
    driver.run()
    assert [child.num_cached_tokens for child in children] == [num_prompt - 1] * 3
    if num_prompt > 1:
        assert driver.scheduler.stats().num_forks == 3
        assert driver.runner.num_copies == (0 if (num_prompt - 1) % 4 == 0 else 3)
        computed = [driver.runner.num_computed[child.request_id] for child in children]
        assert max(computed) <= 6 + late  # the last prompt token, then decodes
    driver.check_outputs()


def test_fork_of_a_leader_that_left_starts_by_itself(make_driver):
    driver = make_driver(num_blocks=16, budget=2)
    leader = driver.add([1, 2, 3, 0, 1], max_tokens=4)
    child = driver.add([1, 2, 3, 0, 1], max_tokens=4, fork_of=leader)
    driver.step()
    assert driver.scheduler.num_waiting == 1
    assert driver.abort(leader)
    driver.run()
    assert driver.scheduler.stats().num_forks == 0
    assert child.finish_reason is FinishReason.LENGTH
    driver.check_outputs()


@BOTH_MODES
def test_abort_in_every_state(make_driver, late):
    driver = make_driver(num_blocks=6, max_num_seqs=3, late=late)
    leader = driver.add([1] * 6, max_tokens=20)
    parked = driver.add([1] * 6, max_tokens=20, fork_of=leader)
    assert parked.status is RequestStatus.WAITING and driver.scheduler.num_waiting == 2
    assert driver.abort(parked)
    waiting = driver.add([2], max_tokens=3)
    assert driver.abort(waiting) and not driver.abort(waiting)
    assert not driver.scheduler.finish("nobody", FinishReason.ABORT)
    other = driver.add([2] * 6, max_tokens=20)
    while other.status is not RequestStatus.PREEMPTED:
        driver.step()
    assert driver.abort(other)
    plan = driver.scheduler.schedule()
    result = driver.runner.execute(plan)
    assert driver.abort(leader)  # planned, not updated
    assert driver.manager.usage().num_used_blocks > 0
    while driver.pending:
        driver.update()
    assert driver.scheduler.update(plan, result) == []
    driver.scheduler.check_invariants()
    assert driver.manager.usage().num_used_blocks == 0
    assert not driver.scheduler.has_unfinished


def test_blocks_of_an_ended_request_stay_until_its_later_plan_is_updated(make_driver):
    driver = make_driver(num_blocks=4, late=True)
    request = driver.add([1, 2, 0], max_tokens=9, stops=True)
    follower = driver.add([2] * 4, max_tokens=1)
    while not request.is_finished:
        driver.step()
    assert request.finish_reason is FinishReason.STOP and request.output_token_ids[-1] == 3
    num_output = len(request.output_token_ids)
    assert driver.pending and driver.manager.block_ids(request)
    driver.run()
    assert not driver.manager.block_ids(request)
    assert len(request.output_token_ids) == num_output
    assert follower.is_finished
    driver.check_outputs()


def test_stop_reasons_and_min_tokens(make_driver):
    driver = make_driver()
    request = driver.add([1], max_tokens=9)
    request.stop_token_ids = frozenset([7, 8])
    request.params.stop_token_ids = [7]
    request.params.min_tokens = 2
    results = []
    for token_id in (8, 7):
        plan = driver.scheduler.schedule()
        results += driver.scheduler.update(plan, StepResult(plan.step_id, [RowResult(0, [token_id])]))
    assert [update.is_finished for update in results] == [False, True]
    assert (request.finish_reason, request.stop_reason) == (FinishReason.STOP, 7)
    eos = driver.add([1], max_tokens=9)
    eos.stop_token_ids = frozenset([8])
    plan = driver.scheduler.schedule()
    driver.scheduler.update(plan, StepResult(plan.step_id, [RowResult(plan.rows[0].slot, [8])]))
    assert (eos.finish_reason, eos.stop_reason) == (FinishReason.STOP, None)


@BOTH_MODES
def test_failed_row_ends_its_request_and_its_readers_recompute(make_driver, late):
    driver = make_driver(num_blocks=32, late=late, max_num_seqs=6)
    prefix = [1, 2, 3, 0, 1, 1, 1, 1]
    failing = driver.add([*prefix, 2], max_tokens=4)
    fork = driver.add([*prefix, 2], max_tokens=4, fork_of=failing)
    reader = driver.add([*prefix, 1], max_tokens=4)
    second_reader = driver.add([*prefix, 1, 2, 2, 2, 2], max_tokens=4)
    neighbour = driver.add([2, 2, 2, 2, 2], max_tokens=4)
    driver.runner.poisoned.add(failing.request_id)
    driver.run()
    assert driver.runner.failed == {failing.request_id}
    assert failing.finish_reason is FinishReason.ERROR and isinstance(failing.error, NumericalError)
    assert [r.num_preemptions for r in (reader, second_reader, neighbour)] == [1, 1, 0]
    assert fork.finish_reason is FinishReason.LENGTH
    driver.check_outputs()
    again = driver.add([*prefix, 2], max_tokens=4)
    driver.run()
    assert again.num_cached_tokens == 8  # from the readers' second computation
    driver.check_outputs()


def test_late_failure_reaches_a_fork_made_meanwhile(make_driver):
    driver = make_driver(num_blocks=32, late=True, caching=False)
    failing = driver.add([1, 2], max_tokens=4)
    fork = driver.add([1, 2], max_tokens=4, fork_of=failing)
    driver.runner.poisoned.add(failing.request_id)
    driver.run()
    assert driver.scheduler.stats().num_forks == 1 and driver.runner.num_copies == 1
    assert failing.finish_reason is FinishReason.ERROR
    assert fork.finish_reason is FinishReason.LENGTH and fork.num_preemptions == 1
    driver.check_outputs()


@BOTH_MODES
def test_failed_step_ends_its_requests_only(make_driver, late):
    driver = make_driver(max_num_seqs=2, late=late)
    failing = [driver.add([index, 1], max_tokens=5) for index in range(2)]
    waiting = driver.add([2, 2], max_tokens=2)
    driver.step()
    plan = driver.scheduler.schedule()
    for pending, _ in [*driver.pending, (plan, None)]:
        updates = driver.scheduler.fail(pending, StepError("the device is lost"))
        driver.scheduler.check_invariants()
        assert [update.request for update in updates] == ([] if failing == [] else failing)
        failing = []
    driver.pending.clear()
    driver.run()
    assert [r.finish_reason for r in driver.requests] == [FinishReason.ERROR] * 2 + [FinishReason.LENGTH]
    assert waiting.finish_reason is FinishReason.LENGTH


def test_updates_out_of_order_or_of_another_shape_are_refused(make_driver):
    driver = make_driver()
    driver.add([1], max_tokens=5)
    first, second = driver.scheduler.schedule(), driver.scheduler.schedule()
    with pytest.raises(StepError, match="step 1 was given for update, the next in order is 0"):
        driver.scheduler.update(second, StepResult(1, [RowResult(0, [1])]))
    with pytest.raises(StepError, match="1 rows"):
        driver.scheduler.update(first, StepResult(0, []))
    with pytest.raises(StepError, match="slot 3"):
        driver.scheduler.update(first, StepResult(0, [RowResult(3, [1])]))
    with pytest.raises(StepError, match="neither token nor error"):
        driver.scheduler.update(first, StepResult(0, [RowResult(0, [])]))
    assert driver.scheduler.update(first, StepResult(0, [RowResult(0, [1])]))[0].new_token_ids == [1]


def test_salt_separates_requests_of_one_plan(make_driver):
    driver = make_driver(num_blocks=16)
    requests = [driver.add([1] * 9, max_tokens=2, salt=salt) for salt in ("", "a", "a")]
    driver.run()
    assert [request.num_cached_tokens for request in requests] == [0, 0, 8]
    driver.check_outputs()


def test_prompt_logprobs_are_handed_out_once_each(make_driver):
    driver = make_driver(num_blocks=3, budget=2, caching=True)
    first = driver.add([1, 1, 1], max_tokens=6)
    request = driver.add([2, 0, 2], max_tokens=6)
    request.params.prompt_logprobs = 0
    positions = []
    for _ in range(60):
        plan = driver.scheduler.schedule()
        if not plan.rows:
            break
        rows = driver.runner.execute(plan).rows
        found = []
        for planned, row in zip(plan.rows, rows, strict=True):
            scored = range(planned.start + 1, min(planned.start + planned.num_tokens, 2) + 1)
            logprobs = [TokenLogprobs(position, 0.0, 1, [], []) for position in scored]
            found.append(RowResult(row.slot, row.token_ids, prompt_logprobs=logprobs))
        for update in driver.scheduler.update(plan, StepResult(plan.step_id, found)):
            if update.request is request:
                positions += [logprob.token_id for logprob in update.prompt_logprobs or []]
    assert positions == [1, 2]
    assert first.is_finished and request.is_finished


def test_often_preempted_requests_are_spared(make_driver):
    driver = make_driver(num_blocks=8, caching=False)
    requests = [driver.add([index] * 4, max_tokens=13) for index in range(3)]
    requests[2].num_preemptions = 8
    driver.run()
    assert requests[2].num_preemptions == 8
    assert requests[1].num_preemptions > 0
    driver.check_outputs()


def test_aborting_many_waiting_requests_keeps_the_order_of_the_rest(make_driver):
    driver = make_driver(max_num_seqs=1)
    requests = [driver.add([index % 3], max_tokens=1) for index in range(300)]
    for request in requests[:-3]:
        assert driver.abort(request)
    assert driver.scheduler.num_waiting == 3
    driver.run()
    ends = [update.request for update in driver.updates if update.is_finished]
    assert ends == requests[-3:]


def test_a_preempted_request_waits_for_its_tokens_in_flight(make_driver):
    driver = make_driver(num_blocks=3, caching=False, late=2)
    first = driver.add([1] * 3, max_tokens=2)
    last = driver.add([2] * 3, max_tokens=8)
    driver.step()
    driver.step()
    driver.abort(first)
    state = driver.scheduler._requests.find(last.request_id)
    driver.scheduler._requests.preempt(state)
    assert state.num_planned == last.num_in_flight == 2
    assert driver.scheduler.schedule().rows == []
    driver.update()
    assert driver.scheduler.schedule().rows == []
    driver.update()
    assert last.num_in_flight == 0 and last.num_tokens == 5
    assert driver.step().assignments[0].token_ids == last.token_ids(0, 5)
    driver.run()
    driver.check_outputs()


def test_nobody_is_admitted_in_a_step_that_preempted(make_driver):
    driver = make_driver(num_blocks=6, max_num_seqs=2, policy="priority", caching=False)
    driver.add([1] * 6, max_tokens=12, priority=0)
    low = driver.add([2] * 10, max_tokens=9, priority=5)
    driver.step()
    small = driver.add([0], max_tokens=2, priority=1)  # better than the victim, but no slot is free
    while not low.num_preemptions:
        assert small.status is RequestStatus.WAITING
        driver.step()
    assert small.status is RequestStatus.WAITING
    driver.step()
    assert small.status is RequestStatus.RUNNING
    driver.run()
    driver.check_outputs()


def test_a_discarded_row_that_fails_too_is_nobodys_fault(make_driver):
    driver = make_driver(num_blocks=16, late=1)
    failing = driver.add([1] * 9, max_tokens=1)
    reader = driver.add([1] * 9, max_tokens=4)
    driver.runner.poisoned.add(failing.request_id)
    driver.step()
    driver.step()
    assert failing.finish_reason is FinishReason.ERROR
    assert reader.status is RequestStatus.PREEMPTED
    plan, result = driver.pending[0]
    assert [row.error is not None for row in result.rows] == [True]
    driver.run()
    assert reader.finish_reason is FinishReason.LENGTH and reader.num_preemptions == 1
    driver.check_outputs()


def test_a_failed_request_lists_no_block_when_it_is_released(make_driver):
    driver = make_driver(num_blocks=16, late=1)
    driver.add([1] * 5, max_tokens=1)
    driver.run()
    failing = driver.add([1] * 7, max_tokens=2)
    driver.step()
    driver.runner.poisoned.add(failing.request_id)
    driver.run()
    assert failing.finish_reason is FinishReason.ERROR and failing.num_tokens == 8
    later = driver.add([*failing.token_ids(), 0], max_tokens=2)
    driver.run()
    assert later.num_cached_tokens == 4
    driver.check_outputs()
