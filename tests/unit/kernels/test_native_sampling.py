"""Native sampling against its reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from sampling_cases import DTYPES, Params, penalties, random_rows, special_rows, tensors

from quire.ops import sampling as reference
from quire_kernels.sampling.native import apply_penalties, greedy_tokens, sample_tokens


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 7, 255, 256, 257, 1000, 5000, 50257])
def test_any_parameters(dtype: torch.dtype, size: int) -> None:
    drawn = 0
    for seed in range(8):
        logits, rows = random_rows(size, 9, seed)
        logits, params = logits.to(dtype), tensors(rows)
        kept = logits.clone()
        expected = reference.sample_tokens(logits, *params)
        assert sample_tokens(logits, *params).tolist() == expected.tolist()
        assert greedy_tokens(logits).tolist() == reference.greedy_tokens(logits).tolist()
        assert logits.equal(kept)
        drawn += int((expected != reference.greedy_tokens(logits)).sum())
    assert drawn > 5 or size < 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 256, 1000])
def test_special_rows(dtype: torch.dtype, size: int) -> None:
    for name, logits, rows in special_rows(size):
        logits, params = logits.to(dtype), tensors(rows)
        expected = reference.sample_tokens(logits, *params)
        assert sample_tokens(logits, *params).tolist() == expected.tolist(), name
        assert greedy_tokens(logits).tolist() == reference.greedy_tokens(logits).tolist(), name
        assert (expected == reference.NO_TOKEN).all() == (name == "no token")


def test_a_row_in_any_batch_equals_the_row_alone() -> None:
    logits, rows = random_rows(3000, 12, 2)
    params = tensors(rows)
    together = sample_tokens(logits, *params)
    for index in range(12):
        one = slice(index, index + 1)
        assert sample_tokens(logits[one], *(x[one] for x in params)).equal(together[one])


def test_rows_with_gaps_and_transposed_ones() -> None:
    logits, rows = random_rows(600, 9, 3)
    params, expected = tensors(rows), reference.sample_tokens(logits, *tensors(rows))
    wide = torch.full((9, 700), torch.nan)
    wide[:, 50:650] = logits
    for same in (wide[:, 50:650], logits.t().contiguous().t()):
        assert sample_tokens(same, *params).equal(expected)
        assert greedy_tokens(same).equal(reference.greedy_tokens(logits))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_anywhere_and_nan_anywhere(dtype: torch.dtype) -> None:
    """All lanes, block ends and the rest after the last whole vector."""
    for size in (16, 67, 256, 600):
        logits = torch.full((size, size), -1.0, dtype=dtype)
        logits.fill_diagonal_(-0.5)
        assert greedy_tokens(logits).tolist() == list(range(size))
        logits.fill_diagonal_(torch.nan)
        assert greedy_tokens(logits).tolist() == [-1] * size


@pytest.mark.parametrize("lengths", [[3, 0, 7, 1], [0], [7, 7], [9000, 10000]])
def test_penalties(lengths: list[int]) -> None:
    size = max(7, *lengths)
    logits, *rest = penalties(size, lengths, 0)
    expected = reference.apply_penalties(logits.clone(), *rest)
    assert apply_penalties(logits, *rest) is logits
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)


def test_other_dtypes_are_refused() -> None:
    logits = torch.zeros(1, 8, dtype=torch.float64)
    with pytest.raises(TypeError, match="not torch.float64"):
        greedy_tokens(logits)
    with pytest.raises(TypeError, match="not torch.float64"):
        sample_tokens(logits, *tensors([Params()]))
    with pytest.raises(TypeError, match="take float32, not torch.float64"):
        apply_penalties(logits, *penalties(8, [1], 0)[1:])
