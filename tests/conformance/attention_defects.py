"""Attention backends, each with one defect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from naive_attention import NaiveAttention, is_chunk
from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.protocols import AttentionParams
from quire.ops.paged_attention import TorchPagedAttention


class WrongKVHead(NaiveAttention):
    def kv_head(self, head: int, params: AttentionParams) -> int:
        return head % params.num_kv_heads


class NoScale(NaiveAttention):
    def scale(self, params: AttentionParams, batch: ForwardBatch, row: int) -> float:
        return 1.0


class WindowOneTooWide(NaiveAttention):
    def visible(
        self, query: Tensor, key: Tensor, params: AttentionParams, batch: ForwardBatch, row: int
    ) -> Tensor:
        wider = params.window and replace(params, window=params.window + 1)
        return super().visible(query, key, wider or params, batch, row)


class IgnoresWindow(NaiveAttention):
    def visible(
        self, query: Tensor, key: Tensor, params: AttentionParams, batch: ForwardBatch, row: int
    ) -> Tensor:
        return key <= query


class CapsAfterAlibi(NaiveAttention):
    def alibi(
        self, slopes: Tensor, distances: Tensor, positions: Tensor, batch: ForwardBatch, row: int
    ) -> Tensor:
        return -slopes[:, None, None] * distances


class StaleFork(NaiveAttention):
    def copy_blocks(self, kv_caches: Sequence[Tensor], source_ids: Tensor, destination_ids: Tensor) -> None:
        pass


class CopiesKeysOnly(NaiveAttention):
    def copy_blocks(self, kv_caches: Sequence[Tensor], source_ids: Tensor, destination_ids: Tensor) -> None:
        for cache in kv_caches:
            half = cache.shape[2] // 2
            cache[destination_ids, :, :half] = cache[source_ids, :, :half]


class CopiesFirstLayerOnly(NaiveAttention):
    def copy_blocks(self, kv_caches: Sequence[Tensor], source_ids: Tensor, destination_ids: Tensor) -> None:
        super().copy_blocks(kv_caches[:1], source_ids, destination_ids)


class CopiesBackwards(NaiveAttention):
    def copy_blocks(self, kv_caches: Sequence[Tensor], source_ids: Tensor, destination_ids: Tensor) -> None:
        super().copy_blocks(kv_caches, destination_ids, source_ids)


class WrongSlotAtChunkBoundary(NaiveAttention):
    def slots_to_write(self, batch: ForwardBatch) -> Tensor:
        slots = batch.slot_mapping.clone()
        for row in range(batch.num_requests):
            if is_chunk(batch, row):
                slots[batch.query_start[row]] -= 1
        return slots


class NeighboursBlock(NaiveAttention):
    def table(self, batch: ForwardBatch, row: int) -> Tensor:
        is_decode = row and batch.query_lens[row] == 1
        return batch.block_tables[row - 1 if is_decode else row]


class PaddingWritten(NaiveAttention):
    def write(self, cache: Tensor, key: Tensor, value: Tensor, batch: ForwardBatch) -> None:
        super().write(cache, key, value, batch)
        if batch.num_tokens % 8:
            cache[0] = 0.0  # the slot of every padding row of the last tile


class SeesFutureInMixedBatches(NaiveAttention):
    def visible(
        self, query: Tensor, key: Tensor, params: AttentionParams, batch: ForwardBatch, row: int
    ) -> Tensor:
        seen = super().visible(query, key, params, batch, row)
        return torch.ones_like(seen) if 0 < batch.num_decode_rows < batch.num_requests else seen


class WindowPerChunk(NaiveAttention):
    def first_key(self, batch: ForwardBatch, row: int) -> int:
        return batch.context_lens[row] - batch.query_lens[row] if is_chunk(batch, row) else 0


class NoScaleInDecode(NaiveAttention):
    def scale(self, params: AttentionParams, batch: ForwardBatch, row: int) -> float:
        return params.scale if batch.query_lens[row] > 1 or batch.context_lens[row] == 1 else 1.0


class ReadsPastTheEnd(NaiveAttention):
    """A decode reads its last block whole; what is not written yet there was zero when it was tried."""

    def num_keys(self, batch: ForwardBatch, row: int) -> int:
        length = batch.context_lens[row]
        if batch.query_lens[row] > 1:
            return length
        return -(-length // batch.block_size) * batch.block_size

    def visible(
        self, query: Tensor, key: Tensor, params: AttentionParams, batch: ForwardBatch, row: int
    ) -> Tensor:
        seen = super().visible(query, key, params, batch, row)
        return seen if batch.query_lens[row] > 1 else torch.ones_like(seen)


class MasksByMultiplying(NaiveAttention):
    """A decode multiplies what it must not see by a weight of zero: NaN in a slot of nobody comes through."""

    def num_keys(self, batch: ForwardBatch, row: int) -> int:
        length = batch.context_lens[row]
        return length if batch.query_lens[row] > 1 else -(-length // batch.block_size) * batch.block_size

    def combine(self, weights: Tensor, values: Tensor, visible: Tensor) -> Tensor:
        return torch.einsum("hql,lhd->qhd", weights, values)


class WritesRowByRow(NaiveAttention):
    """Each row is written when its turn comes, so that a row cannot read what one behind it writes."""

    def write(self, cache: Tensor, key: Tensor, value: Tensor, batch: ForwardBatch) -> None:
        pass

    def before_row(self, cache: Tensor, key: Tensor, value: Tensor, batch: ForwardBatch, row: int) -> None:
        starts = batch.query_start.tolist()
        cache[batch.slot_mapping[starts[row] : starts[row + 1]]] = torch.cat((key, value), 1)


class ReadsBeforeItWrites(TorchPagedAttention):
    """The batch's own keys are attended to from the inputs; the context is read before the step is written."""

    def forward(self, query, key, value, kv_cache, params, batch):  # type: ignore[no-untyped-def]  # as the base's
        before = kv_cache.clone()
        super().forward(query, key, value, kv_cache, params, batch)
        kept = kv_cache.clone()
        result = None
        for row in range(batch.num_requests):
            kv_cache.copy_(before)
            slots = batch.slot_mapping[batch.query_start[row] : batch.query_start[row + 1]]
            flat, new = kv_cache.view(-1, *kv_cache.shape[2:]), kept.view(-1, *kv_cache.shape[2:])
            flat[slots] = new[slots]
            part = _Reader().read(query, kv_cache, params, batch, row)
            result = part if result is None else torch.cat((result, part))
        kv_cache.copy_(kept)
        return result


class _Reader(NaiveAttention):
    def read(
        self, query: Tensor, kv_cache: Tensor, params: AttentionParams, batch: ForwardBatch, row: int
    ) -> Tensor:
        own = query[batch.query_start[row] : batch.query_start[row + 1]]
        cache = kv_cache.view(-1, 2 * params.num_kv_heads, params.head_size)
        return self.attend_row(own, cache, params, batch, row).flatten(1)


class RoundsCache(TorchPagedAttention):
    """Keys and values lose precision once they lie in the cache."""

    def forward(self, query, key, value, kv_cache, params, batch):  # type: ignore[no-untyped-def]  # as the base's
        result = super().forward(query, key, value, kv_cache, params, batch)
        flat = kv_cache.view(-1, *kv_cache.shape[2:])
        flat[batch.slot_mapping] = flat[batch.slot_mapping].to(torch.float16).to(flat.dtype)
        return result


class BlocksOfFour(NaiveAttention):
    def block_size(self, batch: ForwardBatch) -> int:
        return 4


class DecodesInAnotherOrder(NaiveAttention):
    """Decodes are sorted by length, and their outputs stay sorted."""

    def forward(self, query, key, value, kv_cache, params, batch):  # type: ignore[no-untyped-def]  # as the base's
        result = super().forward(query, key, value, kv_cache, params, batch)
        count = batch.num_decode_rows
        order = sorted(range(count), key=lambda row: batch.context_lens[row])
        return torch.cat((result[:count][order], result[count:]))


class OneLengthForAllDecodes(NaiveAttention):
    def num_keys(self, batch: ForwardBatch, row: int) -> int:
        lengths = batch.context_lens[: batch.num_decode_rows]
        return min(lengths) if row < len(lengths) else batch.context_lens[row]


class AlibiFromTheChunk(NaiveAttention):
    """Alibi's distances are those to the chunk's first token: right up to a constant in a whole prompt."""

    def alibi(
        self, slopes: Tensor, distances: Tensor, positions: Tensor, batch: ForwardBatch, row: int
    ) -> Tensor:
        shift = distances.clone()
        if is_chunk(batch, row):
            first = batch.context_lens[row] - batch.query_lens[row]
            keys = torch.arange(distances.shape[1])
            shift = torch.where(keys < first, distances + first, distances)
        return slopes[:, None, None] * shift


class ChangesItsQuery(NaiveAttention):
    def forward(self, query, key, value, kv_cache, params, batch):  # type: ignore[no-untyped-def]  # as the base's
        query *= params.scale
        return super().forward(query, key, value, kv_cache, replace(params, scale=1.0), batch)
