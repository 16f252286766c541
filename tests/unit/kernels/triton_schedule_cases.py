"""Cases of how Triton's paged attention cuts a step into items, on a GPU or in Triton's interpreter.

Triton reads TRITON_INTERPRET when kernels are defined: `test_triton_attention.py` runs this file in its own process.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import triton
from attention_cases import Shape, make_case

from quire.api.batch import ForwardBatch
from quire_kernels.paged_attention.triton import RowRange, make_schedule
from quire_kernels.paged_attention.triton_plans import Plan

pytestmark = pytest.mark.usefixtures("poisoned_memory", "mended_interpreter")

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"


def test_items_of_two_rows() -> None:
    """11 tiles for 5 items are three each, and none in common."""
    plan = Plan(True, 1, 16, tile=16, min_tiles=1, target_items=5, num_warps=4, num_stages=2)
    schedule = make_schedule(RowRange(0, 2, 2, is_decode=True), plan, None, lengths_only([(1, 144), (1, 20)]))
    assert [item[:7] for item in schedule.items.tolist() if item[0]] == [
        [3, 0, 0, 0, 1, 143, 0],
        [6, 3, 0, 0, 1, 143, 1],
        [9, 6, 0, 0, 1, 143, 2],
        [2, 0, 1, 1, 1, 19, -1],
    ]
    assert [merge for merge in schedule.merges.tolist() if merge[0]] == [[3, 0, 0, 1]]


@pytest.mark.parametrize("seed", range(12))
def test_items_cover_every_tile_once(seed: int) -> None:
    """And stay within the tables and slots that are reserved."""
    draw = random.Random(seed)
    is_decode, block_tokens = draw.choice([(True, 1), (False, 1), (False, 3), (False, 18)])
    tile = draw.choice([16, 32])
    plan = Plan(is_decode, block_tokens, 16, tile, draw.choice([1, 2, 8]), draw.choice([1, 2, 5, 33]), 4, 2)
    window = draw.choice([None, 1, 40])
    rows = []
    for _ in range(draw.choice([1, 3, 40])):
        length = 1 if is_decode else draw.choice([1, 2, 5, 40])
        rows.append((length, length + draw.choice([0, 1, 15, 200, 3000])))
    skipped = draw.choice([0, 2])  # rows of the other range
    batch = lengths_only([(1, 50)] * skipped + rows)
    total = sum(length for length, _ in rows)
    schedule = make_schedule(RowRange(skipped, len(rows), total, is_decode), plan, window, batch)
    tiles: dict[tuple[int, ...], list[int]] = {}
    slots: dict[int, list[int]] = {}
    items = [item for item in schedule.items.tolist() if item[0]]
    for end, start, row, token, tokens, position, slot, _ in items:
        tiles.setdefault((row, token, tokens, position), []).extend(range(start, end))
        slots.setdefault(token, []).append(slot)
    assert tiles == expected_tiles(rows, plan, window, skipped)
    merges = [merge for merge in schedule.merges.tolist() if merge[0]]
    assert {token: list(range(first, first + count)) for count, first, token, _ in merges} == {
        token: found for token, found in slots.items() if found != [-1]
    }
    taken = [slot for found in slots.values() for slot in found if slot >= 0]
    assert (
        len(taken) == len(set(taken)) <= 2 * plan.target_items
        and max(taken, default=0) < 2 * plan.target_items
    )
    work = sum(map(len, tiles.values()))
    most = max(plan.min_tiles, -(-work // plan.target_items))
    assert max(item[0] - item[1] for item in items) <= most, "no item is longer than an equal share"


def lengths_only(rows: list[tuple[int, int]]) -> ForwardBatch:
    starts = np.cumsum([0, *(length for length, _ in rows)])
    case = make_case([(1, 1)], Shape(1, 1, 16, 16))
    return replace(
        case.batch,
        query_start=torch.tensor(starts, dtype=torch.int32, device=DEVICE),
        seq_lens=torch.tensor([context for _, context in rows], dtype=torch.int32, device=DEVICE),
    )


def expected_tiles(
    rows: list[tuple[int, int]], plan: Plan, window: int | None, skipped: int
) -> dict[tuple[int, ...], list[int]]:
    """By row, first token, tokens and first position of each Q block."""
    found: dict[tuple[int, ...], list[int]] = {}
    start = skipped
    for row, (length, context) in enumerate(rows):
        for offset in range(0, length, plan.block_tokens):
            tokens, position = min(plan.block_tokens, length - offset), context - length + offset
            first = 0 if window is None else max(0, position - window + 1) // plan.tile
            end = -(-(position + tokens) // plan.tile)
            found[skipped + row, start + offset, tokens, position] = list(range(first, end))
        start += length
    return found
