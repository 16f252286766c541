"""Attention as models ask for it and backends implement it. Types only; torch is not imported at run time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from quire.api.batch import ForwardBatch, KVCacheDTypeName

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True, frozen=True)
class AttentionParams:
    """One attention layer's constants.

    Attributes:
        num_heads, num_kv_heads, head_size: H, K, D; H is a multiple of K and query head h reads
            KV head h // (H // K).
        scale: multiplies the scores before the softmax.
        window: None, or how many latest tokens (itself included) a query sees.
        alibi_slopes: None, or one slope per query head: adds `slope * (key_pos - query_pos)`.
        logit_cap: None, or c in `c * tanh(score / c)`.
        kv_cache_dtype: what keys and values are kept in; set by core, not by models. Anything but "auto" reaches only
            backends whose spec names it.
    """

    num_heads: int
    num_kv_heads: int
    head_size: int
    scale: float
    window: int | None = None
    alibi_slopes: tuple[float, ...] | None = None
    logit_cap: float | None = None
    kv_cache_dtype: KVCacheDTypeName = "auto"


@runtime_checkable
class AttentionBackend(Protocol):
    """Owns the layout of the KV cache and computes attention over it."""

    name: str

    def kv_cache_shape(self, num_blocks: int, block_size: int, params: AttentionParams) -> tuple[int, ...]:
        """Shape of one layer's cache tensor, K and V together.

        Its dtype is the model's where `params.kv_cache_dtype` is "auto", else uint8: the shape is in bytes then, and
        their layout the backend's, with a scale of its own for each token and KV head of keys and of values.
        """
        ...

    def prepare(self, batch: ForwardBatch) -> object:
        """What all layers of this step share (masks, groupings); stored in `batch.attention`."""
        ...

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        params: AttentionParams,
        batch: ForwardBatch,
    ) -> Tensor:
        """Write this step's keys and values, then attend causally over each request's context.

        All KV of the step is written before any is read: a request may read blocks that another
        one writes in the same step. A token whose slot is -1 is not written, and a row whose `seq_lens` is 0
        reads nothing, whatever is put out for it: graphs fill steps up with such rows, on GPUs.

        Args:
            query: [T, H, D]; last dimension contiguous, as in key and value.
            key: [T, K, D].
            value: [T, K, D].
            kv_cache: one layer's cache, written in place at `batch.slot_mapping`.
            params: the layer's constants.
            batch: the step, with what `prepare` made of it.

        Returns:
            [T, H * D], the query's dtype.
        """
        ...

    def copy_blocks(self, kv_caches: Sequence[Tensor], source_ids: Tensor, destination_ids: Tensor) -> None:
        """Copy whole blocks in every layer, in place. Ids: int64 [N]; no id is both source and destination."""
        ...
