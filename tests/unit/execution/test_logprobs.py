"""Log-probabilities against torch's log_softmax and sort."""

import math

import pytest
import torch

from quire.api.errors import NumericalError
from quire.api.request import SamplingParams
from quire.api.step import SlotAssignment
from quire.execution.logprobs import prompt_logprobs, token_logprobs
from quire.execution.sampler import Sampler
from quire.execution.sampling_state import SamplingState

V = 200


@pytest.fixture
def logits():
    return torch.randn(40, V, generator=torch.Generator().manual_seed(2)) * 3


@pytest.mark.parametrize("num_top", [0, 1, 5, V, -1])
def test_values_and_ranks_are_those_of_a_sorted_log_softmax(logits, num_top):
    token_ids = [(7 * i) % V for i in range(40)]
    entries = token_logprobs(logits, token_ids, [num_top] * 40)
    expected = logits.double().log_softmax(-1)
    values, order = expected.sort(-1, descending=True)
    count = V if num_top < 0 else num_top
    for row, entry in enumerate(entries):
        assert entry.token_id == token_ids[row]
        assert entry.logprob == pytest.approx(expected[row, token_ids[row]].item(), abs=1e-5)
        assert entry.rank == order[row].tolist().index(token_ids[row]) + 1
        assert entry.top_ids == order[row, :count].tolist()
        assert entry.top_logprobs == pytest.approx(values[row, :count].tolist(), abs=1e-5)


def test_ties_are_ordered_by_id_in_ranks_and_lists():
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]], dtype=torch.bfloat16)
    entries = [token_logprobs(logits, [token_id], [2])[0] for token_id in range(5)]
    assert [entry.rank for entry in entries] == [4, 1, 2, 3, 5]
    assert entries[0].top_ids == [1, 2]


def test_rows_ask_for_different_counts(logits):
    entries = token_logprobs(logits[:3], [0, 1, 2], [0, 3, -1])
    assert [len(entry.top_ids) for entry in entries] == [0, 3, V]


def test_minus_inf_is_a_value_and_not_an_error():
    logits = torch.tensor([[0.0, -math.inf, 0.0]])
    entry = token_logprobs(logits, [1], [-1])[0]
    assert (entry.logprob, entry.rank) == (-math.inf, 3)
    assert entry.top_ids == [0, 2, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_raise(logits, bad):
    logits[2, 5] = bad
    with pytest.raises(NumericalError):
        token_logprobs(logits, [0] * 40, [0] * 40)


def test_prompt_logprobs_in_chunks_equal_the_whole(logits):
    asked = []

    def compute(start, stop):
        asked.append(stop - start)
        return logits[start:stop]

    token_ids = list(range(40))
    chunked = list(prompt_logprobs(compute, token_ids, 3, chunk_rows=12))
    assert asked == [12, 12, 12, 4]
    assert chunked == token_logprobs(logits, token_ids, [3] * 40)


def test_sampled_logprobs_are_of_the_raw_logits_and_only_where_asked(logits):
    state = SamplingState(2, V)
    for slot, params in enumerate(
        [
            SamplingParams(temperature=0.5, logit_bias={9: 100.0}, repetition_penalty=2.0, logprobs=1),
            SamplingParams(temperature=0.5),
        ]
    ):
        state.assign(slot, SlotAssignment(slot, "r", [1, 2], 1, params, 0, frozenset()))
    result = Sampler().sample(logits[:2], [0, 1], state)
    assert result.logprobs[1] is None
    entry = result.logprobs[0]
    assert entry.token_id == result.token_ids[0] == 9
    assert entry.logprob == pytest.approx(logits[0].double().log_softmax(-1)[9].item(), abs=1e-5)
    assert entry.top_ids == [logits[0].argmax().item()]
