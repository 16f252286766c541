"""Per-slot state: nothing leaks from one request to the next, and old output counts as output."""

import numpy as np

from quire.api.request import SamplingParams
from quire.api.step import SlotAssignment
from quire.execution.sampling_state import SamplingState, TokenCounts

V = 32


def assignment(slot, token_ids, num_prompt, seed=0, stop=(), **params):
    return SlotAssignment(slot, "r", token_ids, num_prompt, SamplingParams(**params), seed, frozenset(stop))


def counts_of(state, slot):
    counts = state.edits[slot].counts
    return dict(zip(counts.token_ids.tolist(), counts.output_counts.tolist(), strict=True))


def test_assign_replaces_everything_of_the_slot():
    state, fresh = SamplingState(2, V), SamplingState(2, V)
    state.assign(
        1,
        assignment(
            1,
            [1, 2, 3],
            2,
            seed=9,
            stop=[4],
            temperature=0.5,
            top_k=3,
            top_p=0.5,
            min_p=0.1,
            min_tokens=3,
            max_tokens=9,
            presence_penalty=1.0,
            frequency_penalty=1.0,
            repetition_penalty=2.0,
            logit_bias={5: 1.0},
            logprobs=2,
        ),
    )
    state.append(1, 7)
    plain = assignment(1, [8, 9], 2, seed=1, temperature=0.0)
    state.assign(1, plain)
    fresh.assign(1, plain)
    for name in (
        "temperature",
        "top_p",
        "min_p",
        "top_k",
        "seeds",
        "min_tokens",
        "num_output_tokens",
        "has_edits",
    ):
        assert getattr(state, name).tolist() == getattr(fresh, name).tolist(), name
    assert state.num_logprobs == [None, None]
    assert state.edits == [None, None]


def test_a_second_request_with_penalties_sees_none_of_the_first_ones_tokens():
    state = SamplingState(1, V)
    state.assign(0, assignment(0, [1, 2], 2, presence_penalty=1.0))
    state.append(0, 7)
    state.assign(0, assignment(0, [3, 4], 2, presence_penalty=1.0))
    state.append(0, 4)
    assert counts_of(state, 0) == {3: 0, 4: 1}


def test_old_output_counts_as_output_after_a_preemption():
    whole, resumed = SamplingState(1, V), SamplingState(1, V)
    whole.assign(0, assignment(0, [1, 2], 2, frequency_penalty=1.0, min_tokens=3))
    for token_id in (5, 2, 5):
        whole.append(0, token_id)
    resumed.assign(0, assignment(0, [1, 2, 5, 2, 5], 2, frequency_penalty=1.0, min_tokens=3))
    assert counts_of(whole, 0) == counts_of(resumed, 0) == {1: 0, 2: 1, 5: 2}
    assert whole.num_output_tokens.tolist() == resumed.num_output_tokens.tolist() == [3]
    assert not resumed.is_below_min_tokens(np.array([0]))[0]


def test_counts_grow_past_their_first_capacity():
    counts = TokenCounts(range(100), [])
    for token_id in range(50, 300):
        counts.append(token_id)
    assert counts.token_ids.tolist() == list(range(300))
    assert counts.output_counts.tolist() == [0] * 50 + [1] * 250


def test_slots_without_penalties_keep_no_counts():
    state = SamplingState(1, V)
    state.assign(0, assignment(0, [1, 2], 2, logit_bias={3: 1.0}))
    assert state.edits[0].counts is None
    state.append(0, 5)
    assert state.num_output_tokens[0] == 1


def test_min_tokens_needs_edits_only_until_it_is_reached():
    state, slots = SamplingState(1, V), np.array([0])
    state.assign(0, assignment(0, [1], 1, stop=[2], min_tokens=1))
    assert state.needs_edits(slots)[0]
    state.append(0, 9)
    assert not state.needs_edits(slots)[0]


def test_ids_past_the_logits_are_left_out():
    state = SamplingState(1, V)
    state.assign(0, assignment(0, [1], 1, stop=[2, V], min_tokens=1, logit_bias={V: 1.0, 3: 2.0}))
    assert state.edits[0].stop_ids.tolist() == [2]
    assert state.edits[0].bias_ids.tolist() == [3]
