"""Rotation fused with the write of keys and values, and apart from it, for comparison."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.protocols import AttentionParams
from quire.api.rotating_attention import RotatingAttentionBackend

_MOST_FEATURES = 16


class Rotating:
    """Rotates queries and keys by their positions before another backend attends.

    Args:
        inner: that backend.
        interleaved: as `rotary` takes it.
        is_fused: by `rotate_and_forward`, else by its `rotary_op` and `forward`.
    """

    def __init__(self, inner: RotatingAttentionBackend, *, interleaved: bool, is_fused: bool) -> None:
        self.inner = inner
        self.name = inner.name
        self._interleaved = interleaved
        self._is_fused = is_fused

    def kv_cache_shape(self, num_blocks: int, block_size: int, params: AttentionParams) -> tuple[int, ...]:
        """See AttentionBackend."""
        return self.inner.kv_cache_shape(num_blocks, block_size, params)

    def prepare(self, batch: ForwardBatch) -> object:
        """See AttentionBackend."""
        return self.inner.prepare(batch)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        params: AttentionParams,
        batch: ForwardBatch,
    ) -> Tensor:
        """See AttentionBackend; leaves its inputs as they are."""
        heads = [params.num_heads, params.num_kv_heads, params.num_kv_heads]
        query, key, value = torch.split(torch.cat((query, key, value), 1), heads, dim=1)
        size = params.head_size if params.head_size <= _MOST_FEATURES else _MOST_FEATURES - 4
        frequencies = 0.7 ** torch.arange(size // 2, dtype=torch.float64)
        angles = batch.positions[:, None] * frequencies
        rows = angles.cos().to(query.dtype), angles.sin().to(query.dtype)
        if self._is_fused:
            inputs = (query, key, value)
            return self.inner.rotate_and_forward(inputs, rows, self._interleaved, kv_cache, params, batch)
        self.inner.rotary_op(query, key, *rows, self._interleaved)
        return self.inner.forward(query, key, value, kv_cache, params, batch)

    def copy_blocks(self, kv_caches: Sequence[Tensor], source_ids: Tensor, destination_ids: Tensor) -> None:
        """See AttentionBackend."""
        self.inner.copy_blocks(kv_caches, source_ids, destination_ids)
