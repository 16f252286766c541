"""An attention backend that watches another one: what it was asked for, and its caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.protocols import AttentionBackend, AttentionParams


@dataclass(slots=True, frozen=True)
class StepShape:
    """The rows of a step: how many tokens each computes, and its context with them."""

    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]

    @property
    def is_mixed(self) -> bool:
        """Whether one row decodes while another computes several tokens of a prompt."""
        return any(q == 1 and c > 1 for q, c in zip(self.query_lens, self.context_lens, strict=True)) and any(
            length > 1 for length in self.query_lens
        )


class WatchedAttention:
    """Passes everything on to another backend.

    Attributes:
        steps: the steps so far. layers: the constants of every attention layer, in the order of construction.
        num_copied_blocks: over all calls of `copy_blocks`.
        is_poisoning: fill each cache with NaN before it is written for the first time after `poison`.
    """

    name = "watched"

    def __init__(self, inner: AttentionBackend, *, is_poisoning: bool = False) -> None:
        self.inner = inner
        self.steps: list[StepShape] = []
        self.layers: list[AttentionParams] = []
        self.num_copied_blocks = 0
        self.is_poisoning = is_poisoning
        self._poisoned: set[int] = set()

    def poison(self) -> None:
        """Fill the caches with NaN before the next step: nothing in them is needed any more."""
        self._poisoned.clear()

    def kv_cache_shape(self, num_blocks: int, block_size: int, params: AttentionParams) -> tuple[int, ...]:
        """See AttentionBackend."""
        if num_blocks > 1:
            self.layers.append(params)
        return self.inner.kv_cache_shape(num_blocks, block_size, params)

    def prepare(self, batch: ForwardBatch) -> object:
        """See AttentionBackend."""
        self.steps.append(StepShape(tuple(batch.query_lens), tuple(batch.context_lens)))
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
        """See AttentionBackend."""
        if self.is_poisoning and kv_cache.data_ptr() not in self._poisoned:
            self._poisoned.add(kv_cache.data_ptr())
            kv_cache.fill_(float("nan"))
        return self.inner.forward(query, key, value, kv_cache, params, batch)

    def copy_blocks(self, kv_caches: Sequence[Tensor], source_ids: Tensor, destination_ids: Tensor) -> None:
        """See AttentionBackend."""
        self.num_copied_blocks += int(source_ids.numel())
        self.inner.copy_blocks(kv_caches, source_ids, destination_ids)
