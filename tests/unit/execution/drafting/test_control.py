"""What draft controls promise to the runner, call by call."""

import pytest

from quire.execution.drafting.adaptive_control import AdaptiveControl
from quire.execution.drafting.control import DraftLimits, FixedControl
from quire.execution.drafting.shadow_drafts import ShadowDrafts

K = 4


def flat(tokens):
    return 10e-3


def gentle(tokens):
    return 10e-3 * (1 + 0.2 * (tokens - 1))


def steep(tokens):
    return 10e-3 * tokens


def points(curve):
    return [(2**i, curve(2**i)) for i in range(8)]


def adaptive(num_slots=4, curve=flat, propose_s=1e-6):
    control = AdaptiveControl(K, num_slots)
    for slot in range(num_slots):
        control.assign(slot, K)
    control.calibrate(points(curve), propose_s)
    return control


def step(control, slots, curve, drafts=None):
    """A step that gives each request the token 7, and accepts nothing."""
    lengths = drafts or [0] * len(slots)
    control.note_tokens(slots, lengths, [[7]] * len(slots))
    control.note_step(len(slots), sum(lengths), curve(len(slots) + sum(lengths)))


def run_until_shadow(control, slots, curve=gentle, num_steps=200):
    """Drafts that are all wrong, until a shadow round; the drafts verified by then, and its limits."""
    num_verified = 0
    for _ in range(num_steps):
        decision = control.limits(slots)
        drafts = None
        if any(decision.limits):
            control.note_propose(len(slots), 1e-6)
            if decision.is_shadow:
                return num_verified, decision.limits
            drafts = control.trim(slots, decision.limits)
            num_verified += sum(drafts)
        step(control, slots, curve, drafts)
    raise AssertionError("no shadow round")


def next_round(control, slots, curve=gentle):
    """Plain steps until the drafter is to be asked again."""
    for _ in range(100):
        decision = control.limits(slots)
        if any(decision.limits):
            return decision
        step(control, slots, curve)
    raise AssertionError("never asked again")


@pytest.mark.parametrize("kind", [FixedControl, AdaptiveControl])
def test_starts_at_the_full_number(kind):
    control = kind(K, 2)
    control.assign(1, K)
    control.calibrate(points(flat), 1e-6)
    assert control.limits([1]) == DraftLimits([K], is_shadow=False)


@pytest.mark.parametrize("kind", [FixedControl, AdaptiveControl])
def test_a_request_gets_no_more_than_its_own_limit(kind):
    control = kind(K, 4)
    for slot, limit in enumerate((0, 1, 3, K + 5)):
        control.assign(slot, limit)
    control.calibrate(points(flat), 1e-6)
    assert control.limits([3, 0, 2, 1]).limits == [K, 0, 3, 1]


def test_fixed_keeps_all_that_was_proposed():
    control = FixedControl(K, 2)
    assert control.trim([0, 1], [2, 0]) == [2, 0]


@pytest.mark.parametrize("kind", [FixedControl, AdaptiveControl])
def test_no_requests_are_no_error(kind):
    control = kind(K, 2)
    control.calibrate(points(flat), 1e-6)
    assert control.limits([]) == DraftLimits([])
    control.note_tokens([0], [2], [[5, 6]])  # of a request that waited for a step


def test_requests_with_drafts_switched_off_are_never_asked_for():
    control = adaptive(2, steep)
    control.assign(0, 0)
    control.assign(1, 0)
    for _ in range(100):
        assert control.limits([0, 1]).limits == [0, 0]


def test_nothing_is_drafted_before_a_step_was_timed():
    control = AdaptiveControl(K, 1)
    control.assign(0, K)
    control.calibrate([], 0.0)
    assert control.limits([0]).limits == [0]
    control.note_step(1, 0, 10e-3)
    assert control.limits([0]).limits[0] > 0


def test_drafts_that_cost_as_much_as_steps_are_hardly_tried():
    num_verified, _ = run_until_shadow(adaptive(4, steep), [0, 1, 2, 3], steep)
    assert num_verified <= 4


def test_expensive_proposals_are_shorter_or_none():
    short = adaptive(1, propose_s=10e-3).limits([0]).limits[0]
    assert 0 < short < K
    assert adaptive(1, propose_s=80e-3).limits([0]).limits == [0]


def test_trim_keeps_what_was_proposed_where_it_pays():
    control = adaptive(2)
    assert control.limits([0, 1]).limits == [K, K]
    assert control.trim([0, 1], [2, 0]) == [2, 0]


def test_trim_of_nothing():
    control = adaptive(2)
    control.limits([0, 1])
    assert control.trim([0, 1], [0, 0]) == [0, 0]


def test_rejected_drafts_are_given_up_and_followed_in_shadow():
    num_verified, limits = run_until_shadow(adaptive(2, gentle), [0, 1])
    assert 2 <= num_verified <= 20
    assert limits == [K, K]


def test_shadow_drafts_that_come_true_switch_drafts_on_again():
    control = adaptive(1, gentle)
    _, limits = run_until_shadow(control, [0])
    for _ in range(10):
        control.shadow([0], [[7] * limits[0]])
        step(control, [0], gentle)
        decision = next_round(control, [0])
        if not decision.is_shadow:
            break
        control.note_propose(1, 1e-6)
        limits = decision.limits
    assert not decision.is_shadow


def test_shadow_rounds_leave_out_requests_whose_last_is_not_decided():
    control = adaptive(2, gentle)
    run_until_shadow(control, [0, 1])
    control.shadow([0, 1], [[7] * 100, [8]])
    step(control, [0, 1], gentle)
    decision = next_round(control, [0, 1])
    assert decision.is_shadow
    assert decision.limits == [0, K]


def test_a_new_request_inherits_no_shadow_drafts():
    control = adaptive(1, gentle)
    run_until_shadow(control, [0])
    control.shadow([0], [[7] * 100])
    control.assign(0, K)
    assert next_round(control, [0]).limits[0] > 0


def test_describe_is_one_line():
    control = adaptive(2)
    control.note_step(2, 0, 20e-3)
    assert "\n" not in control.describe()
    assert "ms" in control.describe()
    assert "up to 4" in FixedControl(K, 2).describe()


@pytest.mark.parametrize(
    ("steps", "outcome"),
    [
        ([[5], [6], [7]], (3, 3)),
        ([[5, 6, 7, 9]], (3, 3)),
        ([[5], [9]], (3, 1)),
        ([[9]], (3, 0)),
        ([[5, 6]], None),
    ],
)
def test_shadow_drafts_are_compared_until_one_differs(steps, outcome):
    shadows = ShadowDrafts()
    shadows.add(1, [5, 6, 7])
    results = [shadows.compare(1, tokens) for tokens in steps]
    assert results[-1] == outcome
    assert not any(results[:-1])
    assert (1 in shadows) == (outcome is None)
    shadows.drop(1)
    assert 1 not in shadows


def test_a_shadow_round_that_took_long_is_paid_for():
    quick, slow = adaptive(2, gentle), adaptive(2, gentle)
    for control, steps in ((quick, 0.0), (slow, 5.0)):
        run_until_shadow(control, [0, 1], gentle)
        control.note_propose(2, steps * gentle(2))
    run_until_shadow(quick, [0, 1], gentle, num_steps=300)
    with pytest.raises(AssertionError, match="no shadow round"):
        run_until_shadow(slow, [0, 1], gentle, num_steps=300)
