"""The attention layer hands its constants and cache to the backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.protocols import AttentionParams
from quire.nn.attention import Attention


class RecordingBackend:
    """Keeps what it was called with."""

    name = "recording"

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

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
        batch: object,
    ) -> Tensor:
        self.calls.append((query.shape, key.shape, value.shape, kv_cache, params, batch))
        return query.flatten(1)

    def copy_blocks(self, kv_caches: Sequence[Tensor], source_ids: Tensor, destination_ids: Tensor) -> None:
        raise NotImplementedError


def test_passes_heads_cache_and_batch() -> None:
    backend, params = RecordingBackend(), AttentionParams(4, 2, 8, 0.4)
    layer = Attention(params, backend)
    assert layer.kv_cache_shape(3, 16) == (3, 16, 4, 8)
    cache, batch = torch.zeros(layer.kv_cache_shape(3, 16)), object()
    layer.bind_kv_cache(cache)
    flat = torch.randn(5, 64)
    query, key, value = flat.split([32, 16, 16], dim=1)
    result = layer(query, key, value, batch)
    heads = layer(query.view(5, 4, 8), key.view(5, 2, 8), value.view(5, 2, 8), batch)
    assert result.equal(query) and heads.equal(query)
    for call in backend.calls:
        assert call[:3] == ((5, 4, 8), (5, 2, 8), (5, 2, 8))
        assert call[3] is cache and call[4] is params and call[5] is batch
    assert not list(layer.parameters()) and not list(layer.buffers())
