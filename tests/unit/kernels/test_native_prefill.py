"""Rows of several tokens in bfloat16, by each kind of instructions there is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from attention_cases import Case, Shape, attend_naively, make_case
from torch import Tensor

from quire.api.batch import DeviceInfo
from quire.api.protocols import AttentionParams
from quire_kernels.native import bfloat16

REFUSAL = bfloat16.bfloat16_refusal(DeviceInfo("cpu"), "bfloat16")
if REFUSAL is not None:
    pytest.skip(REFUSAL, allow_module_level=True)

from quire_kernels.paged_attention import native  # noqa: E402  # it binds the library when imported
from quire_kernels.paged_attention.native import NativePagedAttention  # noqa: E402  # skipped above where there are no kernels
from quire_kernels.paged_attention.tasks import MAX_QUERIES, cut_queries  # noqa: E402  # skipped above where there are no kernels

LIMITS = range(bfloat16.DOT_PRODUCTS, bfloat16.instructions() + 1)
ROWS = {
    "a pair": [(2, 2)],
    "odd lengths": [(31, 31), (33, 70), (1, 40), (3, 131)],
    "chunks": [(17, 300), (5, 256), (9, 129)],
    "many tasks": [(150, 190), (40, 41), (1, 1)],
}
TRAITS = [
    {},
    {"window": 1},
    {"window": 40},
    {"window": 128},
    {"alibi": True},
    {"logit_cap": 2.0},
    {"window": 100, "alibi": True, "logit_cap": 5.0},
]
HEADS = [
    (1, 1, 64),
    (3, 1, 16),
    (4, 4, 40),
    (6, 2, 80),
    (7, 1, 96),
    (4, 2, 112),
    (8, 1, 128),
    (2, 1, 256),
    (2, 2, 5),
]


def attend(case: Case, params: AttentionParams, limit: int) -> Tensor:
    backend = NativePagedAttention(limit)
    case.batch.attention = backend.prepare(case.batch)
    with torch.inference_mode():
        return backend.forward(case.query, case.key, case.value, case.cache, params, case.batch)


def params_of(heads: tuple[int, int, int], traits: dict[str, object]) -> AttentionParams:
    count, kv_heads, size = heads
    slopes = tuple(2.0**-i for i in range(count)) if traits.get("alibi") else None
    known = {name: value for name, value in traits.items() if name != "alibi"}
    return AttentionParams(count, kv_heads, size, size**-0.5, alibi_slopes=slopes, **known)  # type: ignore[arg-type]  # mixed


PAIRS = [
    (heads, rows, TRAITS[(i + 2 * j) % len(TRAITS)])
    for (i, heads), (j, rows) in itertools.product(enumerate(HEADS), enumerate(ROWS.values()))
]
"""Each shape of heads with each kind of rows, and with several traits."""


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize(("heads", "rows", "traits"), PAIRS)
def test_equals_the_oracle(
    heads: tuple[int, int, int],
    rows: list[tuple[int, int]],
    traits: dict[str, object],
    limit: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(NativePagedAttention, "attend_group", None)  # torch's way is not gone
    params = params_of(heads, traits)
    block_size = (1, 4, 16, 48)[len(rows) % 4]
    case = make_case(rows, Shape(*heads, block_size, dtype=torch.bfloat16))
    found, expected = attend(case, params, limit).double(), attend_naively(case, params)
    torch.testing.assert_close(found, expected, atol=1.5e-2, rtol=1.5e-2)
    assert (found - expected).pow(2).mean().sqrt() < 4e-3 * expected.pow(2).mean().sqrt() + 1e-4


@pytest.mark.parametrize("limit", LIMITS)
def test_threads_and_scales(limit: int, threads: int) -> None:
    del threads
    case = make_case(ROWS["many tasks"], Shape(6, 2, 64, 16, dtype=torch.bfloat16))
    for scale in (30.0, -0.125, 0.0):
        params = AttentionParams(6, 2, 64, scale)
        found, expected = attend(case, params, limit).double(), attend_naively(case, params)
        torch.testing.assert_close(found, expected, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("scale", [0.125, 1.5])
def test_what_a_query_gets_does_not_depend_on_the_cut(limit: int, scale: float) -> None:
    params = AttentionParams(3, 1, 64, scale)
    whole = make_case([(300, 300)], Shape(3, 1, 64, 16, dtype=torch.bfloat16), in_order=True)
    expected = attend(whole, params, limit)  # and the cache holds all keys now
    for cut in (150, 151, 290):
        rest = make_case([(300 - cut, 300)], Shape(3, 1, 64, 16, dtype=torch.bfloat16), in_order=True)
        query, key, value = whole.query[cut:], whole.key[cut:], whole.value[cut:]
        found = attend(replace(rest, query=query, key=key, value=value, cache=whole.cache), params, limit)
        assert torch.equal(found, expected[cut:])


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("growth", [0.02, 1.0, 40.0])
def test_scores_that_rise_from_chunk_to_chunk(limit: int, growth: float) -> None:
    """Each chunk's keys outweigh the ones before, by less and by more than weights have room for."""
    params = AttentionParams(2, 1, 32, 1.0)
    case = make_case([(600, 600)], Shape(2, 1, 32, 16, dtype=torch.bfloat16), in_order=True)
    case.query.copy_(0.25 * case.query.abs() + 0.5)
    case.key.copy_(case.key * 0.1 + growth * (torch.arange(600) // 128)[:, None, None] / 32)
    case.context_keys[0].copy_(case.key)
    found, expected = attend(case, params, limit).double(), attend_naively(case, params)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("limit", LIMITS)
def test_a_row_of_nan_leaves_its_neighbours_alone(limit: int) -> None:
    params = AttentionParams(4, 2, 32, 0.2)
    case = make_case([(20, 50), (33, 33), (5, 140)], Shape(4, 2, 32, 16, dtype=torch.bfloat16))
    clean = attend(case, params, limit)
    value = case.value.clone()
    value[20:53] = float("nan")
    spoilt = attend(replace(case, value=value), params, limit)
    assert spoilt[20:53].isnan().all()
    assert torch.equal(spoilt[:20], clean[:20]) and torch.equal(spoilt[53:], clean[53:])


def test_short_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case([(20, 50)], Shape(4, 2, 32, 16, dtype=torch.bfloat16))
    monkeypatch.setattr(native._paged_attention, "_function", lambda arguments: 1)
    with pytest.raises(MemoryError, match="paged_attention"):
        attend(case, AttentionParams(4, 2, 32, 0.2), bfloat16.DOT_PRODUCTS)


@pytest.mark.parametrize("threads_", [1, 2, 7, 64])
def test_tasks_cover_every_query_once(threads_: int) -> None:
    query_lens, context_lens = [1, 1, 700, 2, 33, 2048], [5, 9, 900, 2, 33, 4096]
    tasks = cut_queries(query_lens, context_lens, 2, threads_)
    covered = sorted((int(first), int(first + count)) for _, first, count, _ in tasks)
    assert covered[0][0] == 2 and covered[-1][1] == sum(query_lens)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(covered))
    starts = [0, *itertools.accumulate(query_lens)]
    for row, first, count, position in tasks.tolist():
        assert starts[row] <= first and first + count <= starts[row + 1]
        assert position == context_lens[row] - query_lens[row] + first - starts[row]
        assert 0 < count <= MAX_QUERIES
    assert len(cut_queries([1, 1], [3, 4], 2, threads_)) == 0
