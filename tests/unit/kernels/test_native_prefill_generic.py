"""Rows of several tokens by products of float32: float32 caches, and bfloat16 where the CPU does not multiply it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from attention_cases import Case, Shape, attend_naively, make_case
from torch import Tensor

from quire.api.batch import DeviceInfo
from quire.api.protocols import AttentionParams
from quire_kernels.native import bfloat16
from quire_kernels.native.library import native_refusal

REFUSAL = native_refusal(DeviceInfo("cpu"), "float32")
if REFUSAL is not None:
    pytest.skip(REFUSAL, allow_module_level=True)

from quire_kernels.paged_attention.native import NativePagedAttention  # noqa: E402  # it binds the library when imported

HAS_DOTS = bfloat16.instructions() >= bfloat16.DOT_PRODUCTS
DTYPES = [torch.float32] if HAS_DOTS else [torch.float32, torch.bfloat16]
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
ROWS = [
    [(2, 2)],
    [(31, 31), (33, 70), (1, 40), (3, 131)],
    [(17, 300), (5, 256), (9, 129), (64, 64)],
    [(150, 190), (40, 41), (1, 1)],
]
TRAITS = [
    {},
    {"window": 1},
    {"window": 40},
    {"alibi": True},
    {"logit_cap": 2.0},
    {"window": 100, "alibi": True, "logit_cap": 5.0},
]
HEADS = [(1, 1, 64), (3, 1, 16), (6, 2, 80), (7, 1, 96), (40, 1, 8), (2, 1, 256), (2, 2, 5), (1, 1, 512)]
PAIRS = [
    (heads, ROWS[(i + j) % len(ROWS)], TRAITS[(i + 2 * j) % len(TRAITS)])
    for (i, heads), j in itertools.product(enumerate(HEADS), range(2))
]
"""Each shape of heads with two kinds of rows, and with two traits."""


def attend(case: Case, params: AttentionParams) -> Tensor:
    backend = NativePagedAttention()
    case.batch.attention = backend.prepare(case.batch)
    with torch.inference_mode():
        return backend.forward(case.query, case.key, case.value, case.cache, params, case.batch)


@pytest.fixture(autouse=True)
def not_in_torchs_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativePagedAttention, "attend_group", None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "rows", "traits"), PAIRS)
def test_equals_the_oracle(
    heads: tuple[int, int, int],
    rows: list[tuple[int, int]],
    traits: dict[str, object],
    dtype: torch.dtype,
    poisoned_memory: None,
) -> None:
    count, kv_heads, size = heads
    slopes = tuple(2.0**-i for i in range(count)) if traits.get("alibi") else None
    known = {name: value for name, value in traits.items() if name != "alibi"}
    params = AttentionParams(count, kv_heads, size, size**-0.5, alibi_slopes=slopes, **known)  # type: ignore[arg-type]  # mixed
    for block_size in (1, 16, 48):
        case = make_case(rows, Shape(*heads, block_size, dtype=dtype))
        tolerance = TOLERANCES[dtype]
        expected = attend_naively(case, params)
        torch.testing.assert_close(attend(case, params).double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [30.0, -0.125, 0.0])
def test_large_negative_and_no_scales(scale: float, dtype: torch.dtype) -> None:
    case = make_case(ROWS[3], Shape(6, 2, 64, 16, dtype=dtype))
    params = AttentionParams(6, 2, 64, scale)
    tolerance = (
        30 * TOLERANCES[dtype] if dtype == torch.float32 else 3e-2
    )  # scores of 30 are 1000, weights e^score
    torch.testing.assert_close(
        attend(case, params).double(), attend_naively(case, params), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 70])
def test_what_a_query_gets_does_not_depend_on_the_cut(dtype: torch.dtype, window: int | None) -> None:
    params = AttentionParams(3, 1, 64, 0.125, window=window)
    whole = make_case([(300, 300)], Shape(3, 1, 64, 16, dtype=dtype), in_order=True)
    rest = make_case([(150, 300)], Shape(3, 1, 64, 16, dtype=dtype), in_order=True)
    query, key, value = whole.query[150:], whole.key[150:], whole.value[150:]
    expected = attend(whole, params)  # and the cache holds all keys now
    found = attend(replace(rest, query=query, key=key, value=value, cache=whole.cache), params)
    assert torch.equal(found, expected[150:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_nan_leaves_its_neighbours_alone(dtype: torch.dtype) -> None:
    params = AttentionParams(4, 2, 32, 0.2)
    case = make_case([(20, 50), (33, 33), (5, 140)], Shape(4, 2, 32, 16, dtype=dtype))
    clean = attend(case, params)
    value = case.value.clone()
    value[20:53] = float("nan")
    spoilt = attend(replace(case, value=value), params)
    assert spoilt[20:53].isnan().all()
    assert torch.equal(spoilt[:20], clean[:20]) and torch.equal(spoilt[53:], clean[53:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_that_no_query_sees_are_not_read(dtype: torch.dtype) -> None:
    params = AttentionParams(2, 1, 16, 0.3, window=20)
    case = make_case([(10, 200)], Shape(2, 1, 16, 4, dtype=dtype))
    clean = attend(case, params)
    for position in range(200 - 10 - 19):  # the first query sees 19 tokens before it
        case.cache[case.batch.block_tables[0, position // 4], position % 4] = float("nan")
    assert torch.equal(attend(case, params), clean)
