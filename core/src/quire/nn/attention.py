"""The attention layer of a model: its constants, its KV cache, and the backend that computes it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quire.api.batch import ForwardBatch
from quire.api.protocols import AttentionBackend, AttentionParams
from quire.api.rotating_attention import RotatingAttentionBackend
from quire.nn.rotary import RotaryEmbedding


class Attention(nn.Module):
    """Causal attention over each request's paged context.

    The KV cache belongs to the runner, which binds one tensor per layer before the first step.
    """

    def __init__(self, params: AttentionParams, backend: AttentionBackend) -> None:
        super().__init__()
        self.params = params
        self.backend = backend
        self.kv_cache = torch.empty(0)
        self._compute = backend.forward
        self._rotating = backend if isinstance(backend, RotatingAttentionBackend) else None

    def kv_cache_shape(self, num_blocks: int, block_size: int) -> tuple[int, ...]:
        """Shape of the tensor that `bind_kv_cache` takes."""
        return self.backend.kv_cache_shape(num_blocks, block_size, self.params)

    def bind_kv_cache(self, kv_cache: Tensor) -> None:
        """Use `kv_cache` (see `kv_cache_shape`; uint8 where it is quantized) from now on; not copied."""
        self.kv_cache = kv_cache

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        batch: ForwardBatch,
        rotary: RotaryEmbedding | None = None,
    ) -> Tensor:
        """Write this step's keys and values, and attend.

        With `rotary` the result is that of queries and keys which `rotary` has rotated, to the last bit; where the
        backend stands for the bound op `rotary`, it rotates them in the pass that writes them.

        Args:
            query: [T, H, D] or [T, H * D]; may be a view of a wider tensor, last dimension contiguous.
            key: [T, K, D] or [T, K * D]; likewise. Beside `value` in one tensor they are written together.
            value: the same as key.
            batch: the step, prepared by the same backend.
            rotary: None, or what rotates query and key first; both may then be overwritten.

        Returns:
            [T, H * D], the query's dtype.
        """
        if query.dim() == 2:
            params = self.params
            query = query.view(-1, params.num_heads, params.head_size)
            key = key.view(-1, params.num_kv_heads, params.head_size)
            value = value.view(-1, params.num_kv_heads, params.head_size)
        if rotary is not None:
            rotating = self._rotating
            if rotating is not None and rotating.rotary_op is rotary.op:
                rows, inputs = rotary.step_rows(batch), (query, key, value)
                return rotating.rotate_and_forward(
                    inputs, rows, rotary.interleaved, self.kv_cache, self.params, batch
                )
            query, key = rotary(query, key, batch)
        return self._compute(query, key, value, self.kv_cache, self.params, batch)
