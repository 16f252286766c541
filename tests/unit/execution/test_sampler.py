"""The sampler against transformers' processors, exact distributions, and itself alone."""

import math

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from quire.api.request import SamplingParams
from quire.api.step import SlotAssignment
from quire.execution.sampler import NOTHING_LEFT, Sampler
from quire.execution.sampling_state import SamplingState
from quire.ops.sampling import invert_cdf, truncate

V = 1000
MIXED = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.9, "min_p": 0.05},
    {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 0.0, "repetition_penalty": 1.5, "frequency_penalty": 0.5},
    {"temperature": 0.8, "presence_penalty": 1.0, "logit_bias": {3: 5.0}, "logprobs": 3},
    {"temperature": 0.0, "min_tokens": 5, "max_tokens": 9},
]


def make_state(params_list, tokens=((1, 2, 3), (2, 4, 4)), stop=(), vocab_size=V):
    state = SamplingState(len(params_list), vocab_size)
    for slot, params in enumerate(params_list):
        prompt, output = (list(part) for part in tokens)
        state.assign(
            slot,
            SlotAssignment(
                slot,
                str(slot),
                prompt + output,
                len(prompt),
                SamplingParams(**params),
                100 + slot,
                frozenset(stop),
            ),
        )
    return state


def sample_one(logits, params, **kwargs):
    state = make_state([params], vocab_size=logits.shape[1], **kwargs)
    result = Sampler().sample(logits, [0], state)
    return result.token_ids[0], result.errors[0]


def reachable(logits, params, draws=400, **kwargs):
    """Tokens that come up over many output positions, with their counts."""
    state = make_state([params] * draws, vocab_size=logits.shape[1], **kwargs)
    state.seeds[:] = 100
    state.num_output_tokens[:] = np.arange(draws)
    seen = {}
    for token in Sampler().sample(logits.expand(draws, -1), list(range(draws)), state).token_ids:
        seen[token] = seen.get(token, 0) + 1
    return seen


@pytest.fixture
def logits():
    return torch.randn(len(MIXED), V, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_greedy_takes_the_largest_and_of_ties_the_lowest_id(dtype):
    logits = torch.zeros(3, V, dtype=dtype)
    logits[1, [700, 900]] = 2.0
    logits[2, 999] = 1.0
    state = make_state([{"temperature": 0.0}] * 3)
    assert Sampler().sample(logits, [0, 1, 2], state).token_ids == [0, 700, 999]


def test_a_row_in_any_batch_equals_the_row_alone(logits):
    state, sampler = make_state(MIXED, stop=[7]), Sampler()
    rows = list(range(len(MIXED)))
    for position in range(8):
        state.num_output_tokens[:] = position
        alone = [sampler.sample(logits[i : i + 1], [i], state) for i in rows]
        for order in (rows, rows[::-1], rows[3:] + rows[:3]):
            together = sampler.sample(logits[order], order, state)
            assert together.token_ids == [alone[i].token_ids[0] for i in order]
            assert together.logprobs == [alone[i].logprobs[0] for i in order]


def test_logits_are_not_changed(logits):
    before = logits.clone()
    Sampler().sample(logits, list(range(len(MIXED))), make_state(MIXED, stop=[7]))
    assert torch.equal(before, logits)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_row_that_is_not_finite_fails_alone(logits, bad, dtype):
    state = make_state(MIXED)
    rows = list(range(len(MIXED)))
    good = logits.to(dtype)
    expected = Sampler().sample(good, rows, state)
    broken = good.clone()
    broken[0, 999], broken[2, 0], broken[5] = bad, bad, -math.inf
    result = Sampler().sample(broken, rows, state)
    for index in rows:
        if index in (0, 2, 5):
            assert result.token_ids[index] is None and "not finite" in result.errors[index]
        else:
            assert result.errors[index] is None
            assert result.token_ids[index] == expected.token_ids[index]


def test_minus_inf_entries_are_legal_and_never_sampled():
    logits = torch.full((1, V), -math.inf)
    logits[0, [10, 500]] = 1.0
    assert set(reachable(logits, {"temperature": 2.0})) == {10, 500}


def test_a_row_left_without_tokens_fails_with_its_own_error():
    logits = torch.full((1, V), -math.inf)
    logits[0, 7] = 1.0
    assert sample_one(logits, {"min_tokens": 9}, stop=[7]) == (None, NOTHING_LEFT)
    assert sample_one(logits, {"min_tokens": 2}, stop=[7]) == (7, None)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stop_tokens_wait_for_min_tokens(temperature):
    logits = torch.zeros(1, V)
    logits[0, 7], logits[0, 9] = 50.0, 25.0
    assert sample_one(logits, {"temperature": temperature, "min_tokens": 4}, stop=[7])[0] == 9
    assert sample_one(logits, {"temperature": temperature, "min_tokens": 3}, stop=[7])[0] == 7


def test_logit_bias_is_added_before_the_choice():
    logits = torch.zeros(1, V)
    logits[0, 5] = 3.0
    assert sample_one(logits, {"temperature": 0.0, "logit_bias": {8: 4.0, 5: 0.5}})[0] == 8
    assert sample_one(logits, {"temperature": 0.0, "logit_bias": {5: -100.0}})[0] == 0


def test_penalties_are_the_formulas_of_hf_and_openai(logits):
    penalties = {"repetition_penalty": 1.7, "presence_penalty": 0.4, "frequency_penalty": 0.3}
    prompt, output = [1, 2, 3, 11], [2, 4, 4, 12]
    row = logits[:1].double()
    expected = hf.RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt + output]), row.clone())[0]
    for token_id in set(output):
        expected[token_id] -= 0.3 * output.count(token_id) + 0.4
    # A bias of -100 on all but the penalised tokens and one other makes each pair's order visible.
    for low in (1, 2, 3, 4, 11, 12):
        for gap in (-1e-6, 1e-6):
            probe = torch.full((1, V), -1e4, dtype=torch.float64)
            probe[0, low] = row[0, low]
            probe[0, 500] = expected[low] + gap
            token, _ = sample_one(probe, {"temperature": 0.0, **penalties}, tokens=(prompt, output))
            assert token == (500 if gap > 0 else low)


@pytest.mark.parametrize(
    "top_k,top_p", [(1, 1.0), (7, 1.0), (0, 0.3), (0, 0.9), (0, 0.999), (40, 0.7), (999, 0.5)]
)
@pytest.mark.parametrize("spread", [0.1, 3.0, 20.0])
def test_truncation_keeps_what_hf_keeps(top_k, top_p, spread):
    generator = torch.Generator().manual_seed(top_k + int(spread))
    row = torch.randn(1, V, generator=generator, dtype=torch.float64) * spread
    row -= row.max()
    expected = row.clone()
    if top_k:
        expected = hf.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = hf.TopPLogitsWarper(top_p)(None, expected)
    ours = row[0].numpy().copy()
    truncate(ours, top_k, top_p)
    assert np.array_equal(ours, expected[0].numpy())


def test_truncation_of_ties_keeps_the_lowest_ids():
    row = np.zeros(10)
    truncate(row, 3, 1.0)
    assert np.flatnonzero(row == 0).tolist() == [0, 1, 2]
    row = np.zeros(10)
    truncate(row, 0, 0.45)
    assert np.flatnonzero(row == 0).tolist() == [0, 1, 2, 3, 4]
    row = np.array([-1.0, 0.0, -1.0, -1.0, -np.inf])
    truncate(row, 2, 1.0)
    assert row.tolist() == [-1.0, 0.0, -np.inf, -np.inf, -np.inf]


def test_top_k_of_one_is_greedy():
    logits = torch.randn(1, V).bfloat16().round()
    greedy = sample_one(logits, {"temperature": 0.0})[0]
    assert set(reachable(logits, {"temperature": 2.0, "top_k": 1}, draws=30)) == {greedy}


def test_min_p_drops_by_the_share_of_the_likeliest_after_the_temperature():
    logits = torch.full((1, V), -1e9)
    logits[0, :4] = torch.tensor([0.5, 0.25, 0.1, 0.04]).log()
    assert set(reachable(logits, {"min_p": 0.15})) == {0, 1, 2}
    assert set(reachable(logits, {"min_p": 0.15, "temperature": 0.5})) == {0, 1}


@pytest.mark.parametrize("params", [{}, {"temperature": 0.5}, {"top_k": 6}, {"top_p": 0.75}])
def test_frequencies_are_those_of_the_distribution(params):
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(1)) * 2
    scores = logits.double() / params.get("temperature", 1.0)
    if "top_k" in params:
        scores = hf.TopKLogitsWarper(params["top_k"])(None, scores)
    if "top_p" in params:
        scores = hf.TopPLogitsWarper(params["top_p"])(None, scores)
    expected = scores.softmax(-1)[0] * 4000
    seen = reachable(logits, params, draws=4000)
    counts = torch.tensor([seen.get(i, 0) for i in range(300)], dtype=torch.float64)
    common = expected >= 10
    statistic = ((counts - expected)[common] ** 2 / expected[common]).sum()
    freedom = int(common.sum())
    assert statistic < freedom + 5 * math.sqrt(2 * freedom) + 5
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(expected))


def test_inverse_cdf_at_its_ends_and_steps():
    weights = torch.zeros(6, 512)
    weights[:, [3, 300, 301]] = torch.tensor([1.0, 2.0, 1.0])
    draws = torch.tensor([0.0, 0.2499999, 0.25, 0.7499999, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert invert_cdf(weights, draws).tolist() == [3, 3, 300, 300, 301, 301]


def test_inverse_cdf_equals_a_plain_cumulated_sum():
    generator = torch.Generator().manual_seed(4)
    weights = torch.rand(500, 1024, generator=generator, dtype=torch.float64)
    weights[:, ::3] = 0
    draws = torch.rand(500, generator=generator, dtype=torch.float64)
    ends = weights.cumsum(-1)
    expected = (ends <= draws[:, None] * ends[:, -1:]).sum(-1)
    assert torch.equal(invert_cdf(weights, draws), expected)


def test_the_draw_is_a_function_of_seed_and_position(logits):
    row = logits[:1] * 0.1
    state, other = make_state([{}]), make_state([{}])
    tokens, others = [], []
    for position in range(12):
        state.num_output_tokens[0] = other.num_output_tokens[0] = position
        other.seeds[0] = 999
        tokens.append(Sampler().sample(row, [0], state).token_ids[0])
        others.append(Sampler().sample(row, [0], other).token_ids[0])
    assert len(set(tokens)) > 6
    assert tokens != others
    state.num_output_tokens[0] = 3
    assert Sampler().sample(row, [0], state).token_ids[0] == tokens[3]


def test_one_sampler_takes_changing_shapes_and_dtypes():
    sampler = Sampler()
    for rows, width, dtype in [(1, 10, torch.float32), (20, 700, torch.float64), (3, 700, torch.bfloat16)]:
        logits = torch.zeros(rows, width, dtype=dtype)
        logits[:, width - 1] = 60.0
        state = make_state([{"temperature": t % 2} for t in range(rows)], vocab_size=width)
        assert sampler.sample(logits, list(range(rows)), state).token_ids == [width - 1] * rows


def test_extreme_logits_do_not_overflow():
    logits = torch.full((1, V), -3e38)
    logits[0, 5] = 3e38
    assert sample_one(logits, {"temperature": 0.01})[0] == 5


def test_no_rows_give_no_results():
    result = Sampler().sample(torch.zeros(0, V), [], make_state([{}]))
    assert (result.token_ids, result.logprobs, result.errors) == ([], [], [])


def test_a_draw_next_to_one_never_passes_the_last_token_with_weight():
    # The block's float32 sum may exceed the float64 sum of its tokens.
    weights = torch.rand(500, 512, generator=torch.Generator().manual_seed(5))
    weights[:, 450:] = 0
    draws = torch.full((500,), 1 - 2**-53, dtype=torch.float64)
    assert (invert_cdf(weights, draws) == 449).all()
