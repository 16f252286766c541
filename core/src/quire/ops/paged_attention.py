"""The reference attention backend: paged KV in plain torch, for every device and dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from quire.api.batch import ForwardBatch
from quire.api.errors import ShapeError
from quire.api.protocols import AttentionParams
from quire.ops.attention_groups import RowGroup, StepGroups, group_rows
from quire.ops.copy_blocks import copy_blocks
from quire.ops.plain_attention import plain_attention
from quire.ops.quantized_kv import QuantizedCache, quantized_token_bytes
from quire.ops.views import side_by_side

_MAX_FOLDED_QUERIES = 64
"""Up to so many queries folding is faster for a single row too; it copies them."""


class TorchPagedAttention:
    """Gathers each group's slots with one `index_select` and calls `scaled_dot_product_attention`.

    One layer's cache is [num_blocks, block_size, 2 * K, D]: per token the K key heads, then the K
    value heads, so one copy writes and one gather reads both; quantized caches are as in `quantized_kv`, and what is
    read of them is dequantized to the query's dtype. Grouped-query attention folds the
    query heads of a KV head into the query dimension instead of repeating keys and values. Alibi
    slopes and logit caps take a slower path without SDPA.

    Keeps one gather buffer between calls, as long as the largest group that it has seen; an instance
    serves one thread.

    Attributes:
        copy_op: the op `copy_blocks`: its reference, until a model is built with what is bound.
    """

    name = "torch-paged"

    def __init__(self) -> None:
        self.copy_op: Callable[[Tensor, Tensor, Tensor], Tensor] = copy_blocks
        self._buffer = torch.empty(0)

    def kv_cache_shape(self, num_blocks: int, block_size: int, params: AttentionParams) -> tuple[int, ...]:
        """[num_blocks, block_size, 2 * K, D], or [num_blocks, block_size, bytes of a token] where it is quantized."""
        if params.kv_cache_dtype != "auto":
            return (num_blocks, block_size, quantized_token_bytes(params))
        return (num_blocks, block_size, 2 * params.num_kv_heads, params.head_size)

    def prepare(self, batch: ForwardBatch) -> StepGroups:
        """Group the step's rows; masks are made by the first layer that needs them."""
        return group_rows(batch)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        params: AttentionParams,
        batch: ForwardBatch,
    ) -> Tensor:
        """See AttentionBackend.

        Raises:
            ShapeError: `batch.attention` was not prepared by this backend.
        """
        step = batch.attention
        if not isinstance(step, StepGroups):
            raise ShapeError(f"batch.attention is {type(step).__name__}: set it to prepare(batch) first")
        num_tokens, num_heads, head_size = query.shape
        cache = cache_tokens(kv_cache, params)
        if isinstance(cache, QuantizedCache):
            key, value = cache.write(key, value, batch.slot_mapping)
        else:
            _write(key, value, cache, batch.slot_mapping)
        order, num_decode = step.decode_order, step.num_decode_rows
        decodes = query if order is None else query[:num_decode].index_select(0, order)
        output = torch.empty((num_tokens, num_heads, head_size), dtype=query.dtype, device=query.device)
        for group in step.groups:
            source = decodes if group.start < num_decode else query
            self.attend_group(group, (source, key, value), cache, params, output)
        if order is not None:
            output[:num_decode] = torch.empty_like(decodes).index_copy_(0, order, output[:num_decode])
        return output.view(num_tokens, num_heads * head_size)

    def attend_group(
        self,
        group: RowGroup,
        inputs: tuple[Tensor, Tensor, Tensor],
        cache: Tensor | QuantizedCache,
        params: AttentionParams,
        output: Tensor,
    ) -> None:
        """Attention of one group of rows, over keys and values that are written already.

        Args:
            group: of this step.
            inputs: query [T, H, D], key [T, K, D], value [T, K, D] of the whole step, as the cache keeps them.
            cache: what `cache_tokens` gives.
            params: the layer's constants.
            output: [T, H, D], contiguous; the group's tokens are overwritten.
        """
        query, key, value = inputs
        start, stop = group.start, group.stop
        if group.slots is None:
            keys, values = key[None, start:stop], value[None, start:stop]
        else:
            keys, values = self._read(cache, group, group.slots, params, query.dtype)
        _attend(query[start:stop], keys, values, group, params, output[start:stop])

    def copy_blocks(self, kv_caches: Sequence[Tensor], source_ids: Tensor, destination_ids: Tensor) -> None:
        """See AttentionBackend."""
        for cache in kv_caches:
            self.copy_op(cache, source_ids, destination_ids)

    def _read(
        self,
        cache: Tensor | QuantizedCache,
        group: RowGroup,
        slots: Tensor | slice,
        params: AttentionParams,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of a group, each [R, L, K, D]; views of cache or buffer, valid until the next call."""
        shape = (group.num_rows, group.context_len, 2 * params.num_kv_heads, params.head_size)
        if isinstance(cache, QuantizedCache):
            found = cache.read(slots, dtype)
        elif isinstance(slots, slice):
            found = cache[slots]
        else:
            size, buffer = slots.shape[0] * cache.shape[1], self._buffer
            if buffer.numel() < size or buffer.dtype != cache.dtype or buffer.device != cache.device:
                buffer = self._buffer = torch.empty(size, dtype=cache.dtype, device=cache.device)
            found = buffer[:size].view(-1, cache.shape[1])
            torch.index_select(cache, 0, slots, out=found)
        keys, values = found.view(shape).chunk(2, dim=2)
        return keys, values


def cache_tokens(kv_cache: Tensor, params: AttentionParams) -> Tensor | QuantizedCache:
    """One layer's cache as tokens: [num_slots, 2 * K * D], or what reads and writes a quantized one."""
    if params.kv_cache_dtype != "auto":
        return QuantizedCache(kv_cache, params)
    return kv_cache.view(-1, 2 * params.num_kv_heads * params.head_size)


def _write(key: Tensor, value: Tensor, cache: Tensor, slots: Tensor) -> None:
    """Write keys and values [T, K, D] to `slots` of a cache [num_slots, 2 * K * D]."""
    both = side_by_side(key, value)
    if both is not None:
        cache.index_copy_(0, slots, both.view(both.shape[0], -1))
        return
    width = key.shape[1] * key.shape[2]
    cache[:, :width].index_copy_(0, slots, key.reshape(-1, width))
    cache[:, width:].index_copy_(0, slots, value.reshape(-1, width))


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, group: RowGroup, params: AttentionParams, output: Tensor
) -> None:
    """Attention of one group, written to `output`.

    Args:
        query: [R * Q, H, D].
        keys: [R, L, K, D].
        values: the same.
        group: the rows.
        params: the layer's constants.
        output: [R * Q, H, D], contiguous, overwritten.
    """
    rows, length, num_kv_heads = group.num_rows, group.query_len, params.num_kv_heads
    repeats = params.num_heads // num_kv_heads
    shape = (rows, length, num_kv_heads, repeats, params.head_size)
    query, output = query.view(shape), output.view(shape)
    if params.alibi_slopes is not None or params.logit_cap is not None:
        plain_attention(query, keys, values, group, params, output)
    elif group.slots is None or (rows == 1 and length > _MAX_FOLDED_QUERIES):
        # KV heads as the batch, each one's query heads beside an expanded, uncopied KV head
        size = (num_kv_heads, repeats, group.context_len, params.head_size)
        keys, values = (x[0].transpose(0, 1)[:, None].expand(size) for x in (keys, values))
        is_causal = group.slots is None and (params.window is None or params.window >= length)
        mask = None if is_causal else group.mask(params.window, 1, query.dtype)
        result = F.scaled_dot_product_attention(
            query[0].permute(1, 2, 0, 3),
            keys,
            values,
            attn_mask=mask,
            is_causal=is_causal,
            scale=params.scale,
        )
        output[0].permute(1, 2, 0, 3).copy_(result)
    else:
        folded = query.transpose(1, 2).reshape(rows, num_kv_heads, length * repeats, params.head_size)
        mask = group.mask(params.window, repeats, query.dtype)
        result = F.scaled_dot_product_attention(
            folded, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask, scale=params.scale
        )
        output.transpose(1, 2).copy_(result.view(rows, num_kv_heads, length, repeats, params.head_size))
