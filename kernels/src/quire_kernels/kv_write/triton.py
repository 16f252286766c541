"""Writing keys and values to a paged KV cache, with the rotation of a rotary embedding, in one launch of Triton."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.api.protocols import AttentionParams
from quire.ops.quantized_kv import padded_head_size, quantized_token_bytes
from quire_kernels.kv_write.triton_kernel import E4M3, INT8, NONE, write_kv

_KINDS = {"auto": NONE.value, "int8": INT8.value, "fp8_e4m3": E4M3.value}
_BLOCK = 1024
"""Features of a program, about."""


@dataclass(slots=True, frozen=True)
class CacheLayout:
    """How kernels find a layer's tokens in its cache.

    Attributes:
        kind: of elements, as the kernels number them.
        pitch: elements from head to head.
        token: elements from token to token, scales with them.
    """

    kind: int
    pitch: int
    token: int

    @classmethod
    def of(cls, params: AttentionParams) -> CacheLayout:
        """Of a layer."""
        if params.kv_cache_dtype == "auto":
            return cls(NONE.value, params.head_size, 2 * params.num_kv_heads * params.head_size)
        kind, pitch = _KINDS[params.kv_cache_dtype], padded_head_size(params.head_size)
        return cls(kind, pitch, quantized_token_bytes(params))

    def scales(self, kv_cache: Tensor) -> Tensor | None:
        """The cache as float32 where it has scales."""
        return None if self.kind == NONE.value else kv_cache.view(torch.float32)


def write_tokens(
    inputs: tuple[Tensor, Tensor, Tensor],
    rows: tuple[Tensor, Tensor] | None,
    interleaved: bool,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    params: AttentionParams,
) -> Tensor:
    """Write a step's keys and values, rotated where `rows` are given.

    Args:
        inputs: query, key and value, as `AttentionBackend.forward` takes them; not changed.
        rows: cos and sin, as the op `rotary` takes them.
        interleaved: likewise.
        kv_cache: of the layer, as `TorchPagedAttention` lays it out.
        slot_mapping: int64 [T]; -1: nowhere.
        params: the layer's constants.

    Returns:
        The queries: new and rotated where `rows` are given, else those of the inputs.
    """
    query, key, value = inputs
    layout, heads = CacheLayout.of(params), params.num_heads
    cos, sin, pairs = None, None, 0
    rotated = query
    if rows is not None:
        cos, sin, pairs = rows[0].contiguous(), rows[1].contiguous(), rows[0].shape[1]
        rotated = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lanes = _power_of_two(params.head_size)
    most = max(heads, params.num_kv_heads) if rows is not None else params.num_kv_heads
    block_heads = min(_power_of_two(most), max(1, _BLOCK // lanes))
    blocks = -(-params.num_kv_heads // block_heads) + (-(-heads // block_heads) if rows is not None else 0)
    write_kv[(len(query), blocks)](
        query,
        rotated,
        key,
        value,
        kv_cache,
        layout.scales(kv_cache),
        slot_mapping,
        cos,
        sin,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        pairs,
        NUM_HEADS=heads,
        NUM_KV_HEADS=params.num_kv_heads,
        HEAD_SIZE=params.head_size,
        HEAD_LANES=lanes,
        BLOCK_HEADS=block_heads,
        INTERLEAVED=interleaved,
        PITCH=layout.pitch,
        TOKEN=layout.token,
        KIND=layout.kind,
    )
    return rotated


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
