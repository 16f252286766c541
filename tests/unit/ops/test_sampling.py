"""The references of sampling against their definitions, token by token."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from quire.ops.sampling import NO_TOKEN, apply_penalties, greedy_tokens, sample_tokens

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sampled_naively(
    logits: Tensor, temperature: float, min_p: float, top_k: int, top_p: float, draw: float
) -> tuple[int, float]:
    """A row's token, by sorting; and how far the draw is from the next end of a share."""
    values = logits.double()
    if temperature == 0.0:
        return int(values.argmax()), 1.0
    weights = ((values - values.max()) / temperature).exp()
    weights[weights < min_p] = 0.0
    order = sorted(range(len(weights)), key=lambda index: (-float(weights[index]), index))
    kept = order[:top_k] if top_k else order
    total = sum(float(weights[index]) for index in kept)
    reached, count = 0.0, 0
    while reached < top_p * total - 1e-12 and count < len(kept):
        reached += float(weights[kept[count]])
        count += 1
    kept = sorted(kept[:count])
    goal, ends = draw * reached, 0.0
    for index in kept:
        start, ends = ends, ends + float(weights[index])
        if ends > goal:
            return index, min(ends - goal, goal - start if start else 1.0)
    raise AssertionError("the last end is the total")


def test_any_parameters() -> None:
    random = torch.Generator().manual_seed(0)
    compared = 0
    for _ in range(300):
        logits = torch.randint(-6, 7, (1, 40), generator=random).double() * 0.5
        logits[torch.rand(1, 40, generator=random) < 0.3] = -torch.inf
        if not logits.isfinite().any():
            continue
        u = torch.rand(6, generator=random, dtype=torch.float64).tolist()
        temperature = 0.0 if u[0] < 0.1 else 0.3 + u[0]
        min_p, top_p = max(0.0, u[1] - 0.7), min(1.0, u[2] + 0.3)
        top_k, draw = (int(u[3] * 40), u[5]) if u[4] < 0.5 else (0, u[5])
        expected, margin = sampled_naively(logits[0], temperature, min_p, top_k, top_p, draw)
        if margin < 1e-5:
            continue
        found = sample_tokens(
            logits, column(temperature), column(min_p), torch.tensor([top_k]), column(top_p), column(draw)
        )
        assert found.tolist() == [expected]
        compared += 1
    assert compared > 250


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_equal_logits_the_lowest_id(dtype: torch.dtype) -> None:
    logits = torch.zeros(4, 700, dtype=dtype)
    logits[1, [300, 699]], logits[2, 699], logits[3] = 2.0, 1.0, -torch.inf
    logits[3, 500:] = -5.0
    before = logits.clone()
    assert greedy_tokens(logits).tolist() == [0, 300, 699, 500]
    zeros, ones = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    assert sample_tokens(logits, zeros, zeros, zeros.long(), ones, ones * 0.9).tolist() == [0, 300, 699, 500]
    top_one = sample_tokens(logits, ones, zeros, torch.ones(4).long(), ones, ones * 0.9)
    assert top_one.tolist() == [0, 300, 699, 500]
    assert logits.equal(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_hold_no_token(dtype: torch.dtype, temperature: float) -> None:
    logits = torch.zeros(40, 3, dtype=dtype)  # more than are copied at a time
    logits[1, 2], logits[2, 0], logits[35] = torch.nan, torch.inf, -torch.inf
    logits[3, :2] = -torch.inf
    ones = torch.ones(40, dtype=torch.float64)
    found = sample_tokens(logits, ones * temperature, ones * 0, ones.long() * 0, ones, ones * 0)
    expected = [0] * 40
    expected[1] = expected[2] = expected[35] = NO_TOKEN
    expected[3] = 2
    assert found.tolist() == expected
    assert greedy_tokens(logits).tolist() == expected


def test_a_row_does_not_depend_on_its_batch() -> None:
    random = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(70, 300, generator=random)
    parameters = [torch.rand(70, generator=random, dtype=torch.float64) for _ in range(4)]
    top_k = torch.randint(0, 400, (70,), generator=random)
    arguments = [parameters[0].round(), parameters[1] * 0.1, top_k, parameters[2], parameters[3]]
    together = sample_tokens(logits, *arguments)
    for row in range(70):
        one = slice(row, row + 1)
        assert sample_tokens(logits[one], *(values[one] for values in arguments)).equal(together[one])
    assert len(set(together.tolist())) > 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_penalties(dtype: torch.dtype) -> None:
    logits = torch.tensor(
        [[2.0, -2.0, 0.0, 1.0], [1.0, 1.0, 1.0, -math.inf], [3.0, 3.0, 3.0, 3.0]], dtype=dtype
    )
    result = apply_penalties(
        logits,
        torch.tensor([1, 0, 3, 3, 2]),
        torch.tensor([0, 2, 1, 5, 1]),
        torch.tensor([0, 3, 5, 5]),
        torch.tensor([2.0, 1.0, 5.0], dtype=dtype),
        torch.tensor([0.25, -0.5, 5.0], dtype=dtype),
        torch.tensor([0.125, 0.0, 5.0], dtype=dtype),
    )
    assert result is logits
    expected = [[1.0 - 0.5 - 0.125, -4.0, 0.0, 0.5 - 0.25 - 0.125], [1.0, 1.0, 1.5, -math.inf], [3.0] * 4]
    assert logits.tolist() == expected
