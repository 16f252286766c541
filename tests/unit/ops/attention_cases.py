"""Builds paged batches with a poisoned cache, and attends over them token by token in float64."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.protocols import AttentionParams

SPARE_BLOCKS = 5


@dataclass(frozen=True)
class Case:
    """A batch of rows (query length, context length), its tensors, and each row's whole context."""

    batch: ForwardBatch
    query: Tensor
    key: Tensor
    value: Tensor
    cache: Tensor
    context_keys: list[Tensor]
    context_values: list[Tensor]


@dataclass(frozen=True)
class Shape:
    """What a case looks like beside its rows."""

    num_heads: int
    num_kv_heads: int
    head_size: int
    block_size: int
    dtype: torch.dtype = torch.float64
    is_fused: bool = True


def make_case(rows: list[tuple[int, int]], shape: Shape, seed: int = 0, *, in_order: bool = False) -> Case:
    """Blocks in random order (or in order from 2 on); every slot that holds no earlier token of a row is NaN."""
    rows = sorted(rows, key=lambda row: row[0] != 1)
    random = torch.Generator().manual_seed(seed)
    size, kv_heads, head_size = shape.block_size, shape.num_kv_heads, shape.head_size
    counts = [-(-context // size) for _, context in rows]
    num_blocks = sum(counts) + SPARE_BLOCKS
    order = torch.randperm(num_blocks, generator=random).tolist()
    blocks = iter(range(2, num_blocks) if in_order else order)
    tables = torch.randint(0, num_blocks, (len(rows), max(counts)), generator=random, dtype=torch.int32)
    cache = torch.full((num_blocks, size, 2 * kv_heads, head_size), float("nan"), dtype=shape.dtype)
    flat, keys, values, slots, positions = cache.view(-1, 2 * kv_heads, head_size), [], [], [], []
    for row, (query_len, context) in enumerate(rows):
        tables[row, : counts[row]] = torch.tensor([next(blocks) for _ in range(counts[row])])
        keys.append(_random((context, kv_heads, head_size), shape, random))
        values.append(_random((context, kv_heads, head_size), shape, random))
        where = [int(tables[row, p // size]) * size + p % size for p in range(context)]
        start = context - query_len
        flat[where[:start]] = torch.cat((keys[-1], values[-1]), 1)[:start]
        slots += where[start:]
        positions += range(start, context)
    query_lens, contexts = [query for query, _ in rows], [context for _, context in rows]
    starts = [0, *itertools.accumulate(query_lens)]
    batch = ForwardBatch(
        token_ids=torch.zeros(starts[-1], dtype=torch.int64),
        positions=torch.tensor(positions),
        rope_lens=torch.tensor(positions) + 1,
        query_start=torch.tensor(starts, dtype=torch.int32),
        seq_lens=torch.tensor(contexts, dtype=torch.int32),
        slot_mapping=torch.tensor(slots),
        block_tables=tables,
        logits_rows=torch.tensor(starts[1:]) - 1,
        query_lens=query_lens,
        context_lens=contexts,
        num_decode_rows=query_lens.count(1),
        block_size=size,
    )
    new = [
        torch.cat([x[-query_len:] for x, query_len in zip(side, query_lens, strict=True)])
        for side in (keys, values)
    ]
    query = _random((starts[-1], shape.num_heads, head_size), shape, random)
    parts = (query, new[0], new[1])
    if shape.is_fused:
        parts = torch.cat(parts, 1).split([part.shape[1] for part in parts], 1)
    return Case(batch, *parts, cache, keys, values)


def attend_naively(case: Case, params: AttentionParams) -> Tensor:
    """[T, H * D] in float64, one query head of one token at a time."""
    repeats = params.num_heads // params.num_kv_heads
    outputs, token = [], 0
    for row, (query_len, context) in enumerate(
        zip(case.batch.query_lens, case.batch.context_lens, strict=True)
    ):
        for position in range(context - query_len, context):
            first = 0 if params.window is None else max(0, position - params.window + 1)
            distances = torch.arange(first, position + 1, dtype=torch.float64) - position
            for head in range(params.num_heads):
                keys = case.context_keys[row][first : position + 1, head // repeats].double()
                values = case.context_values[row][first : position + 1, head // repeats].double()
                scores = keys @ case.query[token, head].double() * params.scale
                if params.logit_cap is not None:
                    scores = params.logit_cap * torch.tanh(scores / params.logit_cap)
                if params.alibi_slopes is not None:
                    scores = scores + params.alibi_slopes[head] * distances
                outputs.append(scores.softmax(0) @ values)
            token += 1
    return torch.stack(outputs).view(token, -1)


def _random(size: tuple[int, ...], shape: Shape, random: torch.Generator) -> Tensor:
    return torch.randn(size, generator=random, dtype=torch.float64).to(shape.dtype)
