"""The reference attention backend against a naive oracle, over a cache that is NaN wherever it is not valid."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_cases import Case, Shape, attend_naively, make_case
from torch import Tensor

from quire.api.errors import ShapeError
from quire.api.protocols import AttentionBackend, AttentionParams
from quire.ops import attention_groups
from quire.ops.paged_attention import TorchPagedAttention

SHAPES = [(3, 3, 8), (6, 2, 5), (4, 1, 16)]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
ROWS = {
    "first token": [(1, 1)],
    "decodes": [(1, 7), (1, 3), (1, 30), (1, 31), (1, 16)],
    "fresh prompts": [(5, 5), (5, 5), (9, 9)],
    "chunks with context": [(5, 9), (20, 33)],
    "equal chunks": [(3, 8), (3, 9), (3, 11), (3, 3)],
    "long chunk": [(70, 90)],
    "mixed": [(1, 5), (4, 4), (1, 17), (4, 9), (4, 10), (6, 6), (2, 40), (2, 2), (1, 5)],
}


def attend(case: Case, params: AttentionParams, backend: TorchPagedAttention | None = None) -> Tensor:
    backend = backend or TorchPagedAttention()
    case.batch.attention = backend.prepare(case.batch)
    with torch.inference_mode():
        return backend.forward(case.query, case.key, case.value, case.cache, params, case.batch)


def check(case: Case, params: AttentionParams) -> None:
    expected = attend_naively(case, params)
    tolerance = TOLERANCES[case.query.dtype]
    result = attend(case, params)
    assert result.dtype == case.query.dtype
    torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize(("heads", "kv_heads", "head_size"), SHAPES)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_equals_the_oracle(
    rows: list[tuple[int, int]], heads: int, kv_heads: int, head_size: int, block_size: int
) -> None:
    params = AttentionParams(heads, kv_heads, head_size, scale=0.4)
    check(make_case(rows, Shape(heads, kv_heads, head_size, block_size)), params)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("is_fused", [True, False])
def test_dtypes_and_layouts(dtype: torch.dtype, is_fused: bool) -> None:
    shape = Shape(6, 2, 8, 4, dtype=dtype, is_fused=is_fused)
    check(make_case(ROWS["mixed"], shape), AttentionParams(6, 2, 8, scale=0.4))


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("has_alibi", [False, True])
@pytest.mark.parametrize("logit_cap", [None, 1.5])
def test_window_alibi_and_cap(window: int | None, has_alibi: bool, logit_cap: float | None) -> None:
    slopes = (0.5, 0.25, 0.125, 0.0625, 0.03, 0.01) if has_alibi else None
    params = AttentionParams(6, 2, 8, 0.4, window=window, alibi_slopes=slopes, logit_cap=logit_cap)
    check(make_case(ROWS["mixed"], Shape(6, 2, 8, 4)), params)


def test_plain_path_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.ops.plain_attention._MAX_SCORES", 100)
    check(make_case([(7, 20), (5, 5)], Shape(4, 2, 8, 4)), AttentionParams(4, 2, 8, 0.4, logit_cap=2.0))


def test_layers_of_a_step_may_differ_in_window() -> None:
    case = make_case(ROWS["mixed"], Shape(6, 2, 8, 4))
    backend = TorchPagedAttention()
    for window in (4, None, 4, 7):
        params = AttentionParams(6, 2, 8, 0.4, window=window)
        prepared = case.batch.attention or backend.prepare(case.batch)
        case.batch.attention = prepared
        result = backend.forward(case.query, case.key, case.value, case.cache, params, case.batch)
        torch.testing.assert_close(result, attend_naively(case, params), atol=1e-12, rtol=1e-12)


def test_reads_blocks_that_another_row_writes_in_the_same_step() -> None:
    case = make_case([(4, 4), (3, 7)], Shape(4, 2, 8, 4))
    case.batch.block_tables[1, 0] = case.batch.block_tables[0, 0]
    case.context_keys[1][:4], case.context_values[1][:4] = case.context_keys[0], case.context_values[0]
    check(case, AttentionParams(4, 2, 8, 0.4))


def test_a_row_of_nan_leaves_its_neighbours_alone() -> None:
    params = AttentionParams(4, 2, 8, 0.4)
    rows = [(1, 5), (1, 9), (3, 8), (3, 9)]
    case = make_case(rows, Shape(4, 2, 8, 4))
    expected = attend_naively(case, params)
    value = case.value.clone()
    value[0] = value[2] = float("nan")
    result = attend(replace(case, value=value), params)
    sick = [0, 2, 3, 4]
    healthy = [token for token in range(8) if token not in sick]
    assert result[sick].isnan().any(dim=1).all()
    torch.testing.assert_close(result[healthy], expected[healthy], atol=1e-12, rtol=1e-12)


def test_many_decodes_are_few_groups_in_the_right_order() -> None:
    lengths = [(37 * index) % 101 + 1 for index in range(64)]
    case = make_case([(1, length) for length in lengths], Shape(2, 1, 4, 16))
    backend = TorchPagedAttention()
    step = backend.prepare(case.batch)
    assert 2 <= len(step.groups) <= 6
    assert step.decode_order is not None
    padding = sum(g.num_rows * g.context_len for g in step.groups) - sum(lengths)
    assert padding <= 512 * len(step.groups)
    check(case, AttentionParams(2, 1, 4, 0.4))


@pytest.mark.parametrize("row", [(1, 1), (1, 13), (5, 14), (4, 16)])
@pytest.mark.parametrize("has_context_in_order", [True, False])
def test_a_row_of_consecutive_blocks_is_read_in_place(
    row: tuple[int, int], has_context_in_order: bool
) -> None:
    case = make_case([row], Shape(4, 2, 8, 4), in_order=has_context_in_order)
    (group,) = TorchPagedAttention().prepare(case.batch).groups
    assert isinstance(group.slots, slice) == (has_context_in_order or row[1] == 1)
    check(case, AttentionParams(4, 2, 8, 0.4))


def test_similar_chunks_are_one_group() -> None:
    case = make_case([(32, 96)] * 8, Shape(2, 1, 4, 16))
    step = TorchPagedAttention().prepare(case.batch)
    assert [(group.num_rows, group.context_len) for group in step.groups] == [(8, 96)]
    check(case, AttentionParams(2, 1, 4, 0.4))


@pytest.mark.parametrize("window", [None, 9])
def test_a_long_chunk_with_context_is_cut_into_pieces(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = replace(attention_groups.CPU_LIMITS, max_queries=4)
    monkeypatch.setattr(attention_groups, "CPU_LIMITS", limits)
    case = make_case([(1, 3), (11, 20), (6, 6)], Shape(4, 2, 8, 4))
    groups = TorchPagedAttention().prepare(case.batch).groups
    assert [(g.start, g.stop, g.context_len) for g in groups] == [
        (0, 1, 3),
        (1, 5, 13),
        (5, 9, 17),
        (9, 12, 20),
        (12, 18, 6),
    ]
    check(case, AttentionParams(4, 2, 8, 0.4, window=window))


def test_buffer_serves_other_sizes_and_dtypes() -> None:
    backend = TorchPagedAttention()
    for dtype, rows in ((torch.float32, [(1, 40)]), (torch.float64, [(1, 3)]), (torch.float64, [(1, 70)])):
        case = make_case(rows, Shape(2, 1, 4, 4, dtype=dtype))
        params = AttentionParams(2, 1, 4, 0.4)
        result = attend(case, params, backend)
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(
            result.double(), attend_naively(case, params), atol=tolerance, rtol=tolerance
        )


def test_copy_blocks_copies_whole_blocks_in_every_layer() -> None:
    caches = [torch.randn(6, 4, 2, 3) for _ in range(2)]
    before = [cache.clone() for cache in caches]
    TorchPagedAttention().copy_blocks(caches, torch.tensor([0, 3]), torch.tensor([5, 1]))
    for cache, old in zip(caches, before, strict=True):
        assert cache.equal(old[[0, 3, 2, 3, 4, 0]])


def test_is_a_backend_and_wants_a_prepared_batch() -> None:
    backend = TorchPagedAttention()
    assert isinstance(backend, AttentionBackend)
    case = make_case([(1, 1)], Shape(2, 1, 4, 4))
    params = AttentionParams(2, 1, 4, 0.4)
    assert backend.kv_cache_shape(7, 16, params) == (7, 16, 2, 4)
    with pytest.raises(ShapeError, match=r"prepare\(batch\)"):
        backend.forward(case.query, case.key, case.value, case.cache, params, case.batch)
