"""The attention backend of a model, asked whether it serves captured graphs: what they need, and padding."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from quire.api.batch import ForwardBatch
from quire.api.errors import CaptureError
from quire.api.protocols import AttentionBackend, AttentionParams, Model
from quire.execution.graph_rows import UnreadLengths
from quire.nn.attention import Attention

_POISON = 7.0
_NUM_ROWS = 2
_NUM_BLOCKS = 2


def graph_backend(model: Model, block_size: int) -> AttentionBackend:
    """The backend of a model's attention layers.

    Raises:
        CaptureError: there are several, or none; or it reads the contexts' lengths on the host; or it writes
            KV of rows whose slot is -1.
    """
    layers = [module for module in cast(nn.Module, model).modules() if isinstance(module, Attention)]
    backends = {id(layer.backend): layer.backend for layer in layers}
    if len(backends) != 1:
        raise CaptureError(f"the model's layers have {len(backends)} attention backends, expected one")
    (backend,) = backends.values()
    caches = {layer.params: layer.kv_cache for layer in layers}
    for params, cache in caches.items():
        try:
            _check_padding(backend, params, cache, block_size)
        except (CaptureError, RuntimeError, IndexError) as error:
            raise CaptureError(f"the attention backend {backend.name}: {error}") from error
    return backend


def _check_padding(backend: AttentionBackend, params: AttentionParams, like: Tensor, block_size: int) -> None:
    """Attend with nothing but padding, over a small cache between guards: no bit of all that may change."""
    shape = backend.kv_cache_shape(_NUM_BLOCKS, block_size, params)
    size = torch.Size(shape).numel()
    memory = torch.full((3 * size,), _POISON, dtype=like.dtype, device=like.device)
    cache = memory[size : 2 * size].view(shape)
    query = memory.new_zeros((_NUM_ROWS, params.num_heads, params.head_size))
    key = memory.new_zeros((_NUM_ROWS, params.num_kv_heads, params.head_size))
    batch = _padding(block_size, like.device)
    batch.attention = backend.prepare(batch)
    backend.forward(query, key, key.clone(), cache, params, batch)
    if not bool((memory == _POISON).all()):
        raise CaptureError("it writes the KV of rows whose slot is -1, so steps cannot be filled up")


def _padding(block_size: int, device: torch.device) -> ForwardBatch:
    zeros = torch.zeros(_NUM_ROWS, dtype=torch.int64, device=device)
    return ForwardBatch(
        token_ids=zeros,
        positions=zeros,
        rope_lens=zeros,
        query_start=torch.arange(_NUM_ROWS + 1, dtype=torch.int32, device=device),
        seq_lens=zeros.int(),
        slot_mapping=zeros - 1,
        block_tables=torch.zeros((_NUM_ROWS, _NUM_BLOCKS), dtype=torch.int32, device=device),
        logits_rows=zeros,
        query_lens=[1] * _NUM_ROWS,
        context_lens=UnreadLengths(_NUM_ROWS),
        num_decode_rows=_NUM_ROWS,
        block_size=block_size,
    )
