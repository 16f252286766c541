"""What `triton_aot.py` compiles of the attention backend: layers, and steps that share their kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.protocols import AttentionParams
from quire_kernels.paged_attention.triton import TritonPagedAttention

MOST_KERNELS = 7
"""Of a layer in all steps: one that writes, and for decodes and prompts each one that schedules, attends, merges."""
BLOCK_SIZE = 16


@dataclass(frozen=True)
class Step:
    """Rows of one token, lengths of the others, and blocks of the longest context."""

    num_decodes: int
    prompts: tuple[int, ...] = ()
    width: int = 512


STEPS = [
    Step(1, (7, 300)),
    *(
        Step(rows, width=width)
        for rows, width in ((1, 16), (2, 100), (3, 512), (16, 17), (17, 512), (256, 300))
    ),
    *(Step(rows, prompts) for rows, prompts in ((0, (2048,)), (16, (16, 17)), (3, (1, 512, 3)))),
]


@dataclass(frozen=True)
class AttentionLayer:
    """An attention layer's constants and its model's dtype; rotary_dim 0: nothing is rotated in the write."""

    params: AttentionParams
    dtype: torch.dtype = torch.bfloat16
    rotary_dim: int = 0
    interleaved: bool = False


def layers(*, is_thorough: bool) -> Iterator[AttentionLayer]:
    """The kinds of heads and traits of the models that the backend is for, or one plain and one of all traits."""
    half, single = torch.float16, torch.float32
    yield AttentionLayer(AttentionParams(32, 8, 128, 0.09))
    slopes = (0.5,) * 28
    yield AttentionLayer(AttentionParams(28, 4, 80, 0.11, 4096, slopes, 30.0), half)
    yield AttentionLayer(AttentionParams(32, 8, 128, 0.09, kv_cache_dtype="int8"), rotary_dim=128)
    fp8 = AttentionParams(28, 4, 80, 0.11, kv_cache_dtype="fp8_e4m3")
    yield AttentionLayer(fp8, half, rotary_dim=20, interleaved=True)
    if not is_thorough:
        return
    for dtype in (torch.bfloat16, single):
        yield AttentionLayer(
            AttentionParams(32, 8, 128, 0.09, kv_cache_dtype="fp8_e4m3"), dtype, rotary_dim=128
        )
    yield AttentionLayer(AttentionParams(32, 8, 64, 0.09, kv_cache_dtype="int8"), half)
    yield AttentionLayer(AttentionParams(32, 8, 128, 0.09), rotary_dim=128)
    for head_size in (64, 96, 112, 192, 256):
        yield AttentionLayer(AttentionParams(32, 8, head_size, 0.1))
    for num_heads, num_kv_heads in ((32, 32), (28, 4), (32, 4), (24, 8), (71, 1)):
        yield AttentionLayer(AttentionParams(num_heads, num_kv_heads, 128, 0.09))
    yield AttentionLayer(AttentionParams(32, 8, 128, 0.09, window=4096))
    yield AttentionLayer(AttentionParams(16, 8, 256, 0.06, logit_cap=50.0))
    yield AttentionLayer(AttentionParams(32, 32, 128, 0.09, alibi_slopes=(0.5,) * 32), half)
    for head_size in (64, 128, 256):
        yield AttentionLayer(AttentionParams(8, 2, head_size, 0.1), single)


def attend(layer: AttentionLayer, step: Step) -> None:
    """One call of the backend, on meta tensors."""
    params, backend = layer.params, TritonPagedAttention()
    batch = _batch(step)
    batch.attention = backend.prepare(batch)
    heads = [params.num_heads, params.num_kv_heads, params.num_kv_heads]
    fused = torch.empty(batch.num_tokens, sum(heads), params.head_size, dtype=layer.dtype, device="meta")
    query, key, value = fused.split(heads, dim=1)
    shape = backend.kv_cache_shape(1000, BLOCK_SIZE, params)
    kept = layer.dtype if params.kv_cache_dtype == "auto" else torch.uint8
    cache = torch.empty(shape, dtype=kept, device="meta")
    if not layer.rotary_dim:
        backend.forward(query, key, value, cache, params, batch)
        return
    size = (batch.num_tokens, layer.rotary_dim // 2)
    cos, sin = (torch.empty(size, dtype=layer.dtype, device="meta") for _ in range(2))
    backend.rotate_and_forward((query, key, value), (cos, sin), layer.interleaved, cache, params, batch)


def _batch(step: Step) -> ForwardBatch:
    query_lens = [1] * step.num_decodes + list(step.prompts)
    num_rows, num_tokens = len(query_lens), sum(query_lens)

    def ints(*size: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    short = torch.int32
    return ForwardBatch(
        *(ints(num_tokens) for _ in range(3)),
        query_start=ints(num_rows + 1, dtype=short),
        seq_lens=ints(num_rows, dtype=short),
        slot_mapping=ints(num_tokens),
        block_tables=ints(num_rows, 512, dtype=short)[:, : step.width],
        logits_rows=ints(num_rows),
        query_lens=query_lens,
        context_lens=query_lens,
        num_decode_rows=step.num_decodes,
        block_size=BLOCK_SIZE,
    )
