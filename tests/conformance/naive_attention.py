"""A plain, correct attention backend, row by row, made of small steps that defects replace one at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.protocols import AttentionParams


class NaiveAttention:
    """The cache is [num_blocks, block_size, 2 * K, D]: keys, then values."""

    name = "naive"

    def kv_cache_shape(self, num_blocks: int, block_size: int, params: AttentionParams) -> tuple[int, ...]:
        return (num_blocks, block_size, 2 * params.num_kv_heads, params.head_size)

    def prepare(self, batch: ForwardBatch) -> object:
        return None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        params: AttentionParams,
        batch: ForwardBatch,
    ) -> Tensor:
        cache = kv_cache.view(-1, 2 * params.num_kv_heads, params.head_size)
        self.write(cache, key, value, batch)
        starts = batch.query_start.tolist()
        outputs = []
        for row in range(batch.num_requests):
            own = slice(starts[row], starts[row + 1])
            self.before_row(cache, key[own], value[own], batch, row)
            outputs.append(self.attend_row(query[own], cache, params, batch, row))
        return torch.cat(outputs).flatten(1)

    def write(self, cache: Tensor, key: Tensor, value: Tensor, batch: ForwardBatch) -> None:
        cache[self.slots_to_write(batch)] = torch.cat((key, value), 1)

    def slots_to_write(self, batch: ForwardBatch) -> Tensor:
        return batch.slot_mapping

    def before_row(self, cache: Tensor, key: Tensor, value: Tensor, batch: ForwardBatch, row: int) -> None:
        """Nothing is left to do."""

    def attend_row(
        self, query: Tensor, cache: Tensor, params: AttentionParams, batch: ForwardBatch, row: int
    ) -> Tensor:
        count, context = batch.query_lens[row], batch.context_lens[row]
        positions = torch.arange(self.first_key(batch, row), self.num_keys(batch, row))
        blocks = self.table(batch, row)[positions // self.block_size(batch)].long()
        keys, values = cache[blocks * self.block_size(batch) + positions % self.block_size(batch)].chunk(2, 1)
        heads = [self.kv_head(head, params) for head in range(params.num_heads)]
        keys, values = keys[:, heads], values[:, heads]
        scores = torch.einsum("qhd,lhd->hql", query, keys) * self.scale(params, batch, row)
        if params.logit_cap is not None:
            scores = params.logit_cap * torch.tanh(scores / params.logit_cap)
        query_positions = torch.arange(context - count, context)
        distances = positions[None] - query_positions[:, None]
        if params.alibi_slopes is not None:
            slopes = torch.tensor(params.alibi_slopes, dtype=query.dtype)
            scores = scores + self.alibi(slopes, distances, query_positions, batch, row)
        visible = self.visible(query_positions[:, None], positions[None], params, batch, row)
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        return self.combine(weights, values, visible)

    def combine(self, weights: Tensor, values: Tensor, visible: Tensor) -> Tensor:
        seen = visible.any(0)
        return torch.einsum("hql,lhd->qhd", weights[:, :, seen], values[seen])

    def alibi(
        self, slopes: Tensor, distances: Tensor, positions: Tensor, batch: ForwardBatch, row: int
    ) -> Tensor:
        return slopes[:, None, None] * distances

    def visible(
        self, query: Tensor, key: Tensor, params: AttentionParams, batch: ForwardBatch, row: int
    ) -> Tensor:
        seen = key <= query
        return seen if params.window is None else seen & (key > query - params.window)

    def first_key(self, batch: ForwardBatch, row: int) -> int:
        return 0

    def num_keys(self, batch: ForwardBatch, row: int) -> int:
        return batch.context_lens[row]

    def table(self, batch: ForwardBatch, row: int) -> Tensor:
        return batch.block_tables[row]

    def block_size(self, batch: ForwardBatch) -> int:
        return batch.block_size

    def kv_head(self, head: int, params: AttentionParams) -> int:
        return head // (params.num_heads // params.num_kv_heads)

    def scale(self, params: AttentionParams, batch: ForwardBatch, row: int) -> float:
        return params.scale

    def copy_blocks(self, kv_caches: Sequence[Tensor], source_ids: Tensor, destination_ids: Tensor) -> None:
        for cache in kv_caches:
            cache[destination_ids] = cache[source_ids]


def is_chunk(batch: ForwardBatch, row: int) -> bool:
    """Whether a row computes several tokens behind earlier ones."""
    return 1 < batch.query_lens[row] < batch.context_lens[row]
