"""The native attention backend against a naive oracle, over a cache that is NaN wherever it is not valid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from attention_cases import Case, Shape, attend_naively, make_case
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quire.api.errors import ShapeError
from quire.api.protocols import AttentionBackend, AttentionParams
from quire_kernels.paged_attention.native import NativePagedAttention
from quire_kernels.paged_attention.tasks import MIN_PIECE, cut_contexts

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
ROWS = {
    "first token": [(1, 1)],
    "decodes": [(1, 7), (1, 3), (1, 30), (1, 31), (1, 16), (1, 17), (1, 64), (1, 65)],
    "mixed": [(1, 5), (4, 4), (1, 17), (4, 9), (6, 6), (2, 40), (1, 5)],
    "long": [(1, 700), (1, 20), (1, 513)],
}


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def attend(case: Case, params: AttentionParams) -> Tensor:
    backend = NativePagedAttention()
    case.batch.attention = backend.prepare(case.batch)
    with torch.inference_mode():
        return backend.forward(case.query, case.key, case.value, case.cache, params, case.batch)


def check(case: Case, params: AttentionParams) -> None:
    tolerance = TOLERANCES[case.query.dtype]
    result = attend(case, params)
    assert result.dtype == case.query.dtype
    torch.testing.assert_close(result.double(), attend_naively(case, params), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("block_size", [1, 16])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_equals_the_oracle(
    rows: list[tuple[int, int]], block_size: int, dtype: torch.dtype, threads: int
) -> None:
    shape = Shape(9, 3, 64, block_size, dtype=dtype)
    check(make_case(rows, shape), AttentionParams(9, 3, 64, scale=0.125))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("head_size", [5, 16, 33, 64, 80, 96, 128, 256, 512])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (3, 1), (5, 1), (7, 1), (6, 1)])
def test_head_sizes_and_groups(heads: int, kv_heads: int, head_size: int, dtype: torch.dtype) -> None:
    shape = Shape(heads, kv_heads, head_size, 4, dtype=dtype)
    params = AttentionParams(heads, kv_heads, head_size, scale=head_size**-0.5)
    check(make_case([(1, 70), (1, 13), (3, 9)], shape), params)


@pytest.mark.parametrize("head_size", [64, 96, 128, 256])
@pytest.mark.parametrize("heads", [1, 3, 4, 6, 8, 14, 16, 17])
def test_tiles_of_16_tokens(heads: int, head_size: int, threads: int) -> None:
    """Where blocks hold multiples of 16 tokens, AMX serves up to 16 query heads to a KV head."""
    rows = [(1, 16), (1, 17), (1, 1), (1, 611), (2, 20), (1, 47)]
    shape = Shape(2 * heads, 2, head_size, 32, dtype=torch.bfloat16)
    check(make_case(rows, shape), AttentionParams(2 * heads, 2, head_size, head_size**-0.5))


@pytest.mark.parametrize("window", [None, 1, 19, 300])
@pytest.mark.parametrize("has_alibi", [False, True])
@pytest.mark.parametrize("logit_cap", [None, 1.5])
def test_traits_in_tiles_of_16_tokens(
    window: int | None, has_alibi: bool, logit_cap: float | None, threads: int
) -> None:
    slopes = (0.5, 0.25, 0.125, 0.0625, 0.03, 0.01) if has_alibi else None
    params = AttentionParams(6, 2, 64, 0.125, window=window, alibi_slopes=slopes, logit_cap=logit_cap)
    rows = [*ROWS["decodes"], *ROWS["long"]]
    check(make_case(rows, Shape(6, 2, 64, 16, dtype=torch.bfloat16)), params)


@pytest.mark.parametrize("is_fused", [True, False])
def test_layouts(is_fused: bool) -> None:
    shape = Shape(6, 2, 16, 4, dtype=torch.float32, is_fused=is_fused)
    check(make_case(ROWS["mixed"], shape), AttentionParams(6, 2, 16, scale=0.4))


@pytest.mark.parametrize("window", [None, 1, 4, 300])
@pytest.mark.parametrize("has_alibi", [False, True])
@pytest.mark.parametrize("logit_cap", [None, 1.5])
def test_window_alibi_and_cap(
    window: int | None, has_alibi: bool, logit_cap: float | None, threads: int
) -> None:
    slopes = (0.5, 0.25, 0.125, 0.0625, 0.03, 0.01) if has_alibi else None
    params = AttentionParams(6, 2, 16, 0.4, window=window, alibi_slopes=slopes, logit_cap=logit_cap)
    rows = [*ROWS["mixed"], *ROWS["long"]]
    check(make_case(rows, Shape(6, 2, 16, 4, dtype=torch.float32)), params)


def test_large_scores_do_not_overflow() -> None:
    case = make_case([(1, 200), (1, 3)], Shape(2, 1, 64, 16, dtype=torch.float32))
    check(case, AttentionParams(2, 1, 64, scale=30.0))


def test_layers_of_a_step_may_differ() -> None:
    case = make_case(ROWS["mixed"], Shape(6, 2, 16, 4, dtype=torch.float32))
    backend = NativePagedAttention()
    case.batch.attention = backend.prepare(case.batch)
    for window in (4, None, 7):
        params = AttentionParams(6, 2, 16, 0.4, window=window)
        result = backend.forward(case.query, case.key, case.value, case.cache, params, case.batch)
        torch.testing.assert_close(result.double(), attend_naively(case, params), atol=1e-5, rtol=1e-5)


def test_reads_blocks_that_another_row_writes_in_the_same_step() -> None:
    case = make_case([(1, 4), (1, 8)], Shape(4, 2, 16, 4, dtype=torch.float32))
    case.batch.block_tables[1, 0] = case.batch.block_tables[0, 0]
    case.context_keys[1][:4], case.context_values[1][:4] = case.context_keys[0], case.context_values[0]
    check(case, AttentionParams(4, 2, 16, 0.4))


def test_a_row_of_nan_leaves_its_neighbours_alone(threads: int) -> None:
    params = AttentionParams(4, 2, 16, 0.4)
    case = make_case([(1, 5), (1, 600), (1, 9), (3, 8)], Shape(4, 2, 16, 4, dtype=torch.float32))
    expected = attend_naively(case, params)
    value = case.value.clone()
    value[1] = float("nan")
    result = attend(replace(case, value=value), params)
    assert result[1].isnan().all()
    healthy = [0, 2, 3, 4, 5]
    torch.testing.assert_close(result[healthy].double(), expected[healthy], atol=1e-5, rtol=1e-5)


def test_keys_of_nan_give_nan() -> None:
    case = make_case([(1, 600), (1, 5)], Shape(2, 1, 16, 4, dtype=torch.float32))
    key = case.key.clone()
    key[0] = float("nan")
    result = attend(replace(case, key=key), AttentionParams(2, 1, 16, 0.4))
    assert result[0].isnan().all() and not result[1].isnan().any()


def test_is_a_backend_and_says_what_it_wants() -> None:
    backend = NativePagedAttention()
    assert isinstance(backend, AttentionBackend) and backend.name == "native-paged"
    case = make_case([(1, 1)], Shape(2, 1, 4, 4, dtype=torch.float32))
    with pytest.raises(ShapeError, match=r"prepare\(batch\)"):
        backend.forward(
            case.query, case.key, case.value, case.cache, AttentionParams(2, 1, 4, 1.0), case.batch
        )
    case = make_case([(1, 1)], Shape(2, 1, 520, 4, dtype=torch.float32))
    case.batch.attention = backend.prepare(case.batch)
    with pytest.raises(ShapeError, match="head_size=520.*torch-paged"):
        backend.forward(
            case.query, case.key, case.value, case.cache, AttentionParams(2, 1, 520, 1.0), case.batch
        )


@given(st.lists(st.integers(1, 5000), min_size=0, max_size=70), st.integers(1, 16))
def test_pieces_cover_every_context_once(context_lens: list[int], threads: int) -> None:
    tasks, merges, num_partials = cut_contexts(context_lens, threads)
    seen = {row: np.zeros(length, dtype=int) for row, length in enumerate(context_lens)}
    partials: dict[int, list[int]] = {}
    for row, first, last, partial in tasks.tolist():
        assert first < last and first % 16 == 0
        seen[row][first:last] += 1
        partials.setdefault(row, []).append(partial)
    assert all((counts == 1).all() for counts in seen.values())
    merged = {row: list(range(first, first + count)) for row, first, count in merges.tolist()}
    for row, found in partials.items():
        assert sorted(found) == merged.get(row, [-1])
    assert sorted(index for found in merged.values() for index in found) == list(range(num_partials))
    lengths = tasks[:, 2] - tasks[:, 1]
    shares = [int(lengths[thread::threads].sum()) for thread in range(threads)]
    assert max(shares) - min(shares) <= lengths.max(initial=0), "equal shares"


def test_a_single_long_context_is_shared_by_the_threads() -> None:
    tasks, _, _ = cut_contexts([8192], 4)
    assert len(tasks) >= 4 * 4
    assert len(cut_contexts([MIN_PIECE], 4)[0]) == 1, "not worth cutting"
