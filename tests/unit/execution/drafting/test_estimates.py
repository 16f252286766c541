"""The estimates behind adaptive drafts, against brute force and plain least squares."""

import itertools

import numpy as np
import pytest

from quire.execution.drafting.acceptance import (
    OPTIMISM,
    OPTIMISM_WEIGHT,
    PRIOR_WEIGHT,
    REQUEST_MEMORY,
    Acceptance,
    Progress,
)
from quire.execution.drafting.pair_filter import PairFilter
from quire.execution.drafting.plan import best_plan
from quire.execution.drafting.step_cost import ProposeCost, StepCost


def test_acceptance_by_the_book():
    acceptance = Acceptance(3, 2)
    acceptance.assign(0, 3)
    acceptance.assign(1, 2)
    assert acceptance.survival([0, 1])[:, 0] == pytest.approx([OPTIMISM, OPTIMISM])
    acceptance.note_outcome(0, 3, 1)  # the first is accepted, the second is not, the third was not looked at
    engine = [
        (1 + OPTIMISM * OPTIMISM_WEIGHT) / (1 + OPTIMISM_WEIGHT),
        OPTIMISM * OPTIMISM_WEIGHT / (1 + OPTIMISM_WEIGHT),
        OPTIMISM,
    ]
    own = [(1 + PRIOR_WEIGHT * engine[0]) / (1 + PRIOR_WEIGHT), PRIOR_WEIGHT * engine[1] / (1 + PRIOR_WEIGHT)]
    expected = [own[0], own[0] * own[1], own[0] * own[1] * engine[2]]
    other = [engine[0], engine[0] * engine[1], 0.0]
    np.testing.assert_allclose(acceptance.survival([0, 1]), [expected, other])


def test_acceptance_of_two_outcomes_in_one_step_counts_both():
    acceptance = Acceptance(1, 1)
    acceptance.assign(0, 1)
    acceptance.note_outcome(0, 1, 1)
    acceptance.note_outcome(0, 1, 0)
    acceptance.survival([0])
    twice = Acceptance(1, 1)
    twice.assign(0, 1)
    for num_accepted in (1, 0):
        twice.note_outcome(0, 1, num_accepted)
        twice.survival([0])
    assert acceptance.survival([0]) == pytest.approx(twice.survival([0]))


def test_a_request_forgets_quickly_and_a_new_one_at_once():
    acceptance = Acceptance(4, 2)
    for slot in (0, 1):
        acceptance.assign(slot, 4)
    for _ in range(30):
        acceptance.note_outcome(0, 4, 4)
        acceptance.note_outcome(1, 4, 0)
        acceptance.survival([0, 1])
    copying, other = acceptance.survival([0, 1])[:, 0]
    assert copying > 0.7 > 0.4 > other
    for _ in range(round(2 / (1 - REQUEST_MEMORY))):
        acceptance.note_outcome(0, 4, 0)
    assert acceptance.survival([0])[0, 0] < 0.4
    acceptance.assign(1, 4)
    acceptance.assign(0, 4)
    first, second = acceptance.survival([0, 1])
    np.testing.assert_array_equal(first, second)


def test_answers_are_weighted_by_what_is_asked_for():
    acceptance = Acceptance(4, 2)
    for slot in (0, 1):
        acceptance.assign(slot, 4)
    for _ in range(60):
        acceptance.note_answers([0, 1], [3, 0])
    assert acceptance.answered([0, 1], [4, 0]) == pytest.approx(1.0)
    assert acceptance.answered([0, 1], [0, 4]) == pytest.approx(0.0, abs=1e-3)
    assert acceptance.answered([0, 1], [3, 1]) == pytest.approx(0.75, abs=1e-3)
    acceptance.assign(0, 4)
    assert acceptance.answered([0], [1]) == pytest.approx(0.5, abs=1e-3)


def test_the_plan_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(40):
        num_rows, width = int(rng.integers(1, 4)), int(rng.integers(1, 4))
        survival = np.sort(rng.random((num_rows, width)))[:, ::-1]
        times = 1.0 + np.cumsum(rng.random(num_rows * width)) * 0.4
        plan = best_plan(survival, times)
        rates = {}
        for lengths in itertools.product(range(width + 1), repeat=num_rows):
            if any(lengths):
                gain = sum(survival[row, :length].sum() for row, length in enumerate(lengths))
                rates[lengths] = (num_rows + gain) / num_rows / times[sum(lengths) - 1]
        assert plan.speedup() == pytest.approx(max(rates.values()))
        assert rates[tuple(plan.lengths)] == pytest.approx(max(rates.values()))


def test_the_plan_never_drafts_where_there_is_no_chance():
    survival = np.array([[0.9, 0.8], [0.0, 0.0]])
    assert best_plan(survival, np.full(4, 1.25)).lengths == [2, 0]


def test_pair_filter_without_drift_is_bayesian_least_squares():
    rng = np.random.default_rng(1)
    factors = rng.random(20) * 3
    values = 2.0 + 0.5 * factors + rng.uniform(-0.1, 0.1, 20)
    pair = PairFilter((1.0, 1.0), (1.0, 2.0), 0.5)
    for factor, value in zip(factors, values, strict=True):
        pair.observe(value, factor, 0.01)
    design = np.stack([np.ones(20), factors], axis=1)
    prior = np.linalg.inv(np.array([[1.0, 0.5], [0.5, 2.0]]))
    precision = prior + design.T @ design / 0.01
    expected = np.linalg.solve(precision, prior @ np.ones(2) + design.T @ values / 0.01)
    assert [pair.first, pair.second] == pytest.approx(expected)
    covariance = np.linalg.inv(precision)
    assert [pair.var_first, pair.covariance, pair.var_second] == pytest.approx(
        [covariance[0, 0], covariance[0, 1], covariance[1, 1]]
    )


def step_cost(points, max_drafts=8, max_num_seqs=16):
    cost = StepCost(max_drafts, max_num_seqs)
    cost.calibrate(points)
    return cost


def test_the_curve_is_straight_between_points_and_beyond():
    cost = step_cost([(1, 1.0), (2, 2.0), (4, 4.0), (8, 8.0)])
    assert cost.plain_s(3) == pytest.approx(3.0)
    assert cost.with_drafts(1).tolist() == pytest.approx([2, 3, 4, 5, 6, 7, 8, 9])


def test_no_larger_steps_are_planned_than_twice_the_largest_seen():
    cost = step_cost([(1, 1.0), (4, 1.0)])
    assert len(cost.with_drafts(4)) == 4
    cost.note(4, 4, 1.0)
    assert len(cost.with_drafts(4)) == 12


def test_times_that_grow_with_fewer_tokens_are_noise():
    times = step_cost([(1, 1.2), (2, 1.0), (4, 1.1), (16, 1.3)]).with_drafts(1)
    assert (np.diff(times) >= 0).all()


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_real_steps_correct_a_curve_that_is_wrong(factor):
    cost = step_cost([(1, 1.0), (2, 1.1), (4, 1.3), (8, 1.7), (16, 2.5)])
    for _ in range(10):
        cost.note(1, 0, 1.0)
        cost.note(1, 7, 1.0 + factor * 0.7)
    assert cost.plain_s(1) == pytest.approx(1.0, rel=0.05)
    assert cost.time(1, 7) == pytest.approx(1.0 + factor * 0.7, rel=0.1)
    assert cost.with_drafts(1)[6] == pytest.approx(cost.time(1, 7))


def test_a_spike_moves_little():
    cost = step_cost([(1, 1.0), (2, 1.1), (16, 2.5)])
    for _ in range(20):
        cost.note(1, 0, 1.0)
    cost.note(1, 0, 10.0)
    assert cost.plain_s(1) < 1.15


def test_figures_are_taken_over_from_similar_numbers_of_requests():
    cost = step_cost([(1, 1.0), (16, 1.0)])
    for _ in range(20):
        cost.note(4, 0, 2.0)
    assert cost.plain_s(1) == pytest.approx(2.0, rel=0.05)
    for _ in range(20):
        cost.note(1, 0, 1.0)
    assert cost.plain_s(1) == pytest.approx(1.0, rel=0.05)
    assert cost.plain_s(4) == pytest.approx(2.0, rel=0.05)


def test_plain_steps_tell_something_only_while_the_base_is_uncertain():
    cost = step_cost([(1, 1.0), (16, 1.5)])
    cost.note(1, 8, 1.4)
    assert cost.learns_from_plain(1)
    for _ in range(5):
        cost.note(1, 0, 1.0)
    assert not cost.learns_from_plain(1)


def test_without_points_the_first_plain_step_is_the_scale():
    cost = StepCost(4, 2)
    cost.note(1, 3, 5.0)
    assert not cost.is_known
    cost.note(1, 0, 0.0)
    assert not cost.is_known
    cost.note(1, 0, 2.0)
    assert cost.is_known
    assert cost.plain_s(1) == pytest.approx(2.0)


def test_proposals_are_split_into_a_fixed_part_and_one_per_draft():
    cost = ProposeCost()
    assert cost.parts(1) == (0.0, 0.0)
    cost.note(1, 8, 10e-3)
    fixed, each = cost.parts(3)
    assert fixed + 8 * each == pytest.approx(10e-3)
    for _ in range(30):
        for num_drafts in (2, 8):
            cost.note(1, num_drafts, 8e-3 + 0.25e-3 * num_drafts)
    fixed, each = cost.parts(1)
    assert fixed == pytest.approx(8e-3, rel=0.05)
    assert each == pytest.approx(0.25e-3, rel=0.1)


def test_a_token_for_a_request_that_is_ahead_is_worth_less():
    progress = Progress(4)
    assert progress.weights([0, 1, 2]).tolist() == [1.0, 1.0, 1.0]
    for _ in range(400):
        progress.note(0, 4)
        progress.note(1, 1)
    # The derivative of the harmonic mean: (1 / 4^2) and 1, scaled to an average of 1.
    assert progress.weights([0, 1]) == pytest.approx([2 / 17, 32 / 17], rel=1e-6)
    progress.assign(0)
    assert progress.weights([0, 1]).tolist() == pytest.approx([1.0, 1.0])
    progress.note(0, 4)
    before = progress.weights([0, 2])[0]
    progress.note_plain()
    assert before < progress.weights([0, 2])[0] < 1.0
