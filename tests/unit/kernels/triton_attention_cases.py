"""Cases of Triton's paged attention, on a GPU or, where TRITON_INTERPRET=1 is set, in Triton's interpreter.

Triton reads that variable when kernels are defined: `test_triton_attention.py` runs this file in its own process.
"""

from __future__ import annotations

import mmap
import random
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import combinations, product
from typing import Any

import pytest
import torch
import triton
from attention_cases import Case, Shape, attend_naively, make_case
from torch import Tensor

from quire.api.errors import ShapeError
from quire.api.protocols import AttentionBackend, AttentionParams
from quire.testing import AttentionBackendConformance
from quire_kernels.paged_attention import triton as backend_module
from quire_kernels.paged_attention.triton import TritonPagedAttention, TritonStep, make_schedule
from quire_kernels.paged_attention.triton_plans import Plan, make_plan

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory", "mended_interpreter"),
    pytest.mark.filterwarnings("ignore:invalid value encountered"),  # numpy's, of the interpreter
]

Cutting = Callable[[int], None]
IS_INTERPRETED = triton.knobs.runtime.interpret
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
ROWS = {
    "decodes": [(1, 1), (1, 16), (1, 33)],
    "prompts": [(17, 17), (3, 9)],
    "mixed": [(1, 5), (4, 4), (1, 90), (2, 40)],
    "long": [(1, 120), (10, 70)],
}
HEAD_SIZES = (64, 80, 96, 112, 128, 192, 256)
TRAITS: dict[str, tuple[Any, ...]] = {
    "head_size": (64, 80),
    "heads": ((2, 2), (6, 2), (7, 1), (8, 1)),
    "rows": tuple(ROWS),
    "window": (None, 1, 5, 100),
    "dtype": tuple(TOLERANCES),
    "block_size": (16, 32),
    "has_alibi": (False, True),
    "logit_cap": (None, 1.5),
    "is_cut": (False, True),
    "is_fused": (True, False),
}


def pairwise(choices: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Combinations in which every pair of two traits' values occurs; deterministic, greedy."""
    draw = random.Random(0)
    remaining = {
        pair
        for (name, options), (other, others) in combinations(choices.items(), 2)
        for pair in product(product([name], options), product([other], others))
    }
    chosen = []
    while remaining:
        some = [{name: draw.choice(options) for name, options in choices.items()} for _ in range(150)]
        best = max(some, key=lambda traits: len(remaining & set(combinations(traits.items(), 2))))
        chosen.append(best)
        remaining -= set(combinations(best.items(), 2))
    return chosen


def describe(traits: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in traits.items()).replace("torch.", "")


def short_items(target_items: int) -> Callable[..., Plan]:
    """`make_plan`, but short contexts are cut into items, about so many as asked for."""

    def make(*arguments: Any, **keywords: Any) -> Plan:
        plan = make_plan(*arguments, **keywords)
        tokens = min(plan.block_tokens, 8)
        return replace(plan, block_tokens=tokens, tile=16, min_tiles=1, target_items=target_items)

    return make


@pytest.fixture
def cutting(monkeypatch: pytest.MonkeyPatch) -> Cutting:
    """Let plans cut from now on."""
    return lambda target_items: monkeypatch.setattr(backend_module, "make_plan", short_items(target_items))


def on_device(case: Case) -> Case:
    """The case's tensors where the kernels run; its contexts stay where the oracle reads them."""

    def moved(value: Any) -> dict[str, Any]:
        found = {field.name: getattr(value, field.name) for field in fields(value)}
        return {name: x.to(DEVICE) for name, x in found.items() if isinstance(x, Tensor)}

    return replace(case, batch=replace(case.batch, **moved(case.batch)), **moved(case))


def attend(case: Case, params: AttentionParams) -> Tensor:
    backend, case = TritonPagedAttention(), on_device(case)
    case.batch.attention = backend.prepare(case.batch)
    with torch.inference_mode():
        return backend.forward(case.query, case.key, case.value, case.cache, params, case.batch).cpu()


def check(case: Case, params: AttentionParams) -> None:
    result, tolerance = attend(case, params), TOLERANCES[case.query.dtype]
    assert result.dtype == case.query.dtype
    torch.testing.assert_close(result.double(), attend_naively(case, params), atol=tolerance, rtol=tolerance)


def check_traits(traits: dict[str, Any], cutting: Cutting) -> None:
    heads, kv_heads = traits["heads"]
    head_size = traits["head_size"]
    shape = Shape(heads, kv_heads, head_size, traits["block_size"], traits["dtype"], traits["is_fused"])
    slopes = tuple(2.0 ** -(1 + i / 2) for i in range(heads)) if traits["has_alibi"] else None
    params = AttentionParams(
        heads, kv_heads, head_size, head_size**-0.5, traits["window"], slopes, traits["logit_cap"]
    )
    if traits["is_cut"]:
        cutting(5)
    check(make_case(ROWS[traits["rows"]], shape), params)


@pytest.mark.parametrize("traits", pairwise(TRAITS), ids=describe)
def test_pairs_of_traits(traits: dict[str, Any], cutting: Cutting) -> None:
    check_traits(traits, cutting)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(100))
def test_random_traits(seed: int, cutting: Cutting) -> None:
    draw = random.Random(seed)
    more = {
        "head_size": (5, 16, 33, 64, 128, 250),
        "block_size": (1, 3, 16, 64),
        "heads": ((1, 1), (71, 1), (6, 2)),
    }
    check_traits({name: draw.choice(options) for name, options in {**TRAITS, **more}.items()}, cutting)


@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_head_sizes(head_size: int) -> None:
    case = make_case([(1, 70), (3, 9)], Shape(3, 1, head_size, 16, torch.float32))
    check(case, AttentionParams(3, 1, head_size, head_size**-0.5))


@pytest.mark.parametrize("context", [1, 15, 16, 17, 64, 65])
def test_contexts_around_blocks_and_tiles(context: int) -> None:
    case = make_case([(1, context), (min(context, 5), context)], Shape(4, 1, 16, 16, torch.float32))
    check(case, AttentionParams(4, 1, 16, 0.4))


@pytest.mark.parametrize(
    ("target_items", "rows", "most_pieces"),
    [(1, [(1, 60), (9, 50)], 0), (6, [(1, 70), (1, 3), (9, 50), (2, 2)], 5), (32, [(1, 500)], 32)],
)
def test_long_contexts_are_cut_and_merged(
    target_items: int,
    rows: list[tuple[int, int]],
    most_pieces: int,
    cutting: Cutting,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 32 pieces 16 are merged first, then 16."""
    cutting(target_items)
    schedules = []

    def recorded(*arguments: Any) -> Any:
        schedules.append(make_schedule(*arguments))
        return schedules[-1]

    monkeypatch.setattr(backend_module, "make_schedule", recorded)
    check(make_case(rows, Shape(3, 1, 16, 16, torch.float32)), AttentionParams(3, 1, 16, 0.4))
    assert max(int(schedule.merges[:, 0].max()) for schedule in schedules) == most_pieces


@pytest.mark.parametrize("window", [1, 20])
def test_blocks_that_no_query_sees_are_not_read(window: int) -> None:
    """They may be freed, and full of another request's NaN."""
    case = make_case([(1, 100), (3, 90)], Shape(3, 1, 16, 16, torch.float32))
    for row, (length, context) in enumerate([(1, 100), (3, 90)]):
        unseen = max(0, context - length - window + 1) // 16
        case.batch.block_tables[row, :unseen] = int(case.batch.block_tables[row, 0])
    first = case.batch.block_tables[:, 0].long()
    case.cache[first] = float("nan")
    check(case, AttentionParams(3, 1, 16, 0.4, window=window))


def test_layers_of_a_step_may_differ() -> None:
    known = make_case(ROWS["mixed"], Shape(6, 2, 16, 16, torch.float32))
    backend, case = TritonPagedAttention(), on_device(known)
    case.batch.attention = backend.prepare(case.batch)
    for window in (4, None, 4):
        params = AttentionParams(6, 2, 16, 0.4, window=window)
        result = backend.forward(case.query, case.key, case.value, case.cache, params, case.batch)
        torch.testing.assert_close(result.cpu().double(), attend_naively(known, params), atol=1e-5, rtol=1e-5)
    assert isinstance(case.batch.attention, TritonStep)
    assert len(case.batch.attention.schedules) == 2 * 2, "ranges times windows"


def test_writes_its_slots_and_no_others() -> None:
    case = on_device(make_case(ROWS["mixed"], Shape(6, 2, 24, 16, torch.float16)))
    case.batch.slot_mapping[1] = -1
    expected = case.cache.clone().view(-1, 4, 24)
    keep = case.batch.slot_mapping >= 0
    expected[case.batch.slot_mapping[keep]] = torch.cat((case.key, case.value), 1)[keep]
    backend = TritonPagedAttention()
    case.batch.attention = backend.prepare(case.batch)
    backend.forward(case.query, case.key, case.value, case.cache, AttentionParams(6, 2, 24, 0.4), case.batch)
    torch.testing.assert_close(case.cache.view(-1, 4, 24), expected, rtol=0, atol=0, equal_nan=True)


def test_offsets_beyond_31_bits() -> None:
    """Blocks behind the first 2**31 elements of a cache, of which only few are ever touched."""
    shape, params = Shape(4, 1, 64, 16, torch.float16), AttentionParams(4, 1, 64, 0.125)
    case = on_device(make_case(ROWS["mixed"], shape))
    expected = attend(case, params)
    few, first = case.cache.shape[0], 2**31 // case.cache[0].numel()
    size = (first + few, *case.cache.shape[1:])
    if IS_INTERPRETED:
        lazy = mmap.mmap(-1, 2 * torch.Size(size).numel())  # has no memory until it is written
        cache = torch.frombuffer(lazy, dtype=torch.float16).view(size)
    else:
        cache = torch.empty(size, dtype=torch.float16, device=DEVICE)
    cache[first:] = case.cache
    batch = replace(
        case.batch,
        block_tables=case.batch.block_tables + first,
        slot_mapping=case.batch.slot_mapping + first * shape.block_size,
    )
    assert attend(replace(case, cache=cache, batch=batch), params).equal(expected)


def test_is_a_backend_and_says_what_it_wants() -> None:
    backend = TritonPagedAttention()
    assert isinstance(backend, AttentionBackend) and backend.name == "triton-paged"
    case = on_device(make_case([(1, 1)], Shape(2, 1, 16, 16, torch.float32)))
    with pytest.raises(ShapeError, match=r"prepare\(batch\)"):
        backend.forward(
            case.query, case.key, case.value, case.cache, AttentionParams(2, 1, 16, 1.0), case.batch
        )
    case = make_case([(1, 1)], Shape(2, 1, 257, 16, torch.float32))
    with pytest.raises(ShapeError, match="head_size=257.*torch-paged"):
        attend(case, AttentionParams(2, 1, 257, 1.0))


@pytest.mark.nightly
@pytest.mark.skipif(not IS_INTERPRETED, reason="the suite's tensors are on the CPU")
class TestConformance(AttentionBackendConformance):
    backend = "quire_kernels.paged_attention.triton:TritonPagedAttention"
    dtypes = ("float32", "float16", "bfloat16")
    kv_cache_dtypes = ("auto", "fp8_e4m3", "int8")
