"""How a step's rows are grouped so that few calls compute their attention; made once for all layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.api.batch import ForwardBatch


@dataclass(slots=True, frozen=True)
class GroupLimits:
    """When a group of rows is closed.

    Attributes:
        max_tokens: context tokens that one call gathers, padding included; a longer row is alone.
        max_padding: of these, tokens that only pad shorter rows.
        max_queries: a longer chunk with earlier context is computed in pieces, each over no more
            keys than it can see: masked scores cost as much as others.
    """

    max_tokens: int
    max_padding: int
    max_queries: int


CPU_LIMITS = GroupLimits(max_tokens=2048, max_padding=512, max_queries=256)
"""Gathered keys and values of a group stay in the second-level cache until they are multiplied."""
GPU_LIMITS = GroupLimits(max_tokens=1 << 18, max_padding=1 << 16, max_queries=2048)


class RowGroup:
    """Rows of equal query length whose attention is one call.

    Attributes:
        start, stop: the group's tokens, in the step's order (see StepGroups.decode_order).
        num_rows, query_len: R and Q of the group; `stop - start` is their product.
        context_len: L, the longest context of its rows.
        slots: int64 [R * L], the KV slots to gather, row by row; a slice where a single row's blocks
            follow each other, so that its context is a view of the cache; None where a single row's
            context is exactly this step's own tokens. Past a row's end slots name the row's first
            one: padding reads the row's own, valid data, so that whatever a freed block holds (NaN
            of a failed request, say) is never read, not even to be multiplied by 0.
    """

    def __init__(self, span: tuple[int, int], query_len: int, context_len: int, contexts: Tensor) -> None:
        self.start, self.stop = span
        self.query_len = query_len
        self.num_rows = (self.stop - self.start) // query_len
        self.context_len = context_len
        self.slots: Tensor | slice | None = None
        self.is_padded = True
        self._contexts = contexts
        self._masks: dict[tuple[object, ...], Tensor] = {}

    def distances(self) -> Tensor:
        """Query position minus key position, int64 [R, Q, L]; negative where the key is later."""
        device = self._contexts.device
        queries = self._contexts.to(torch.int64)[:, None] + torch.arange(-self.query_len, 0, device=device)
        keys = torch.arange(self.context_len, device=device)
        return queries[:, :, None] - keys

    def visible(self, window: int | None) -> Tensor:
        """Which keys a query sees, bool [R, Q, L]."""
        distances = self.distances()
        visible = distances >= 0
        return visible if window is None else visible & (distances < window)

    def mask(self, window: int | None, repeats: int, dtype: torch.dtype) -> Tensor | None:
        """0 where visible, else -inf: [R, 1, Q * repeats, L]; None: all is visible.

        Each query comes `repeats` times (only once where Q is 1: it broadcasts).
        """
        if window is not None and window >= self.context_len:
            window = None
        if window is None and self.query_len == 1 and not self.is_padded:
            return None

        def make() -> Tensor:
            visible = self.visible(window)
            if repeats > 1 and self.query_len > 1:
                visible = visible.repeat_interleave(repeats, dim=1)
            mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            return mask.masked_fill_(~visible, float("-inf"))[:, None]

        return self.cached((window, 1 if self.query_len == 1 else repeats, dtype), make)

    def cached(self, key: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
        """The value of an earlier layer of this step under `key`, else what `make` gives now."""
        if key not in self._masks:
            self._masks[key] = make()
        return self._masks[key]


@dataclass(slots=True, frozen=True)
class StepGroups:
    """What `prepare` makes of a batch.

    Attributes:
        groups: they cover all tokens that were to be grouped, in order.
        decode_order: int64 [num_decode_rows]: the decode rows sorted by context, as the groups count
            them; None where they are in that order already.
        num_decode_rows: of the batch.
    """

    groups: list[RowGroup]
    decode_order: Tensor | None
    num_decode_rows: int


def group_rows(batch: ForwardBatch, *, with_decodes: bool = True) -> StepGroups:
    """Group the rows of a batch.

    Decode rows are sorted by context and cut into groups of similar length. Of the others, a row
    without earlier context stands alone; neighbours with equal query length and similar context are
    grouped (requests that share a prefix); a long chunk with context is cut into pieces.

    Args:
        batch: the step.
        with_decodes: whether decode rows are grouped too, or left to the caller.
    """
    limits = CPU_LIMITS if batch.token_ids.device.type == "cpu" else GPU_LIMITS
    contexts, num_decode = batch.context_lens, batch.num_decode_rows
    order = sorted(range(num_decode), key=contexts.__getitem__, reverse=True) if with_decodes else []
    is_sorted = order == list(range(len(order)))
    rows = order + list(range(num_decode, batch.num_requests))
    tables, lengths = batch.block_tables, batch.seq_lens
    decode_order = None
    if not is_sorted:
        index = torch.tensor(rows, device=tables.device)
        tables, lengths = tables.index_select(0, index), lengths.index_select(0, index)
        decode_order = index[:num_decode]
    if not with_decodes:
        tables, lengths = tables[num_decode:], lengths[num_decode:]
    groups: list[RowGroup] = []
    start, first = num_decode - len(order), 0
    for last in _cuts(batch, rows, limits):
        members = [contexts[row] for row in rows[first:last]]
        query_len = batch.query_lens[rows[first]]
        is_fresh = 1 < query_len == members[0]
        piece = limits.max_queries if len(members) == 1 and not is_fresh else query_len
        for offset in range(0, query_len, piece):
            length = min(piece, query_len - offset)
            later = query_len - offset - length
            seen = lengths[first:last] - later if later else lengths[first:last]
            group = RowGroup((start, start + length * len(members)), length, max(members) - later, seen)
            group.is_padded = min(members) != max(members)
            if not is_fresh:
                group.slots = _slots(tables[first:last], seen, group.context_len, batch.block_size)
            groups.append(group)
            start = group.stop
        first = last
    return StepGroups(groups, decode_order, num_decode)


def _cuts(batch: ForwardBatch, rows: list[int], limits: GroupLimits) -> list[int]:
    """Where each group ends: indices into `rows`, exclusive."""
    cuts: list[int] = []
    first = longest = padding = 0
    for index, row in enumerate(rows):
        context, query_len = batch.context_lens[row], batch.query_lens[row]
        if index > first:
            grown = max(longest, context)
            padding += grown - context + (grown - longest) * (index - first)
            if (
                query_len != batch.query_lens[rows[first]]
                or 1 < query_len == min(context, longest)
                or grown * (index + 1 - first) > limits.max_tokens
                or padding > limits.max_padding
            ):
                cuts.append(index)
                first, longest, padding = index, 0, 0
        longest = max(longest, context)
    if rows:
        cuts.append(len(rows))
    return cuts


def _slots(tables: Tensor, lengths: Tensor, context_len: int, block_size: int) -> Tensor | slice:
    """int64 [R * context_len]: each row's slots in order, then its first slot as padding.

    A slice for a single row whose blocks are consecutive (asked on CPUs only: a GPU would have to wait).
    """
    device = tables.device
    num_blocks = -(-context_len // block_size)
    if tables.shape[0] == 1 and device.type == "cpu":
        block_ids = tables[0, :num_blocks].tolist()
        first = block_ids[0]
        if block_ids == list(range(first, first + num_blocks)):
            return slice(first * block_size, first * block_size + context_len)
    first_slots = tables[:, :num_blocks].to(torch.int64).mul_(block_size)
    slots = first_slots[:, :, None] + torch.arange(block_size, device=device)
    slots = slots.view(tables.shape[0], -1)[:, :context_len]
    if tables.shape[0] > 1:
        is_padding = torch.arange(context_len, device=device) >= lengths[:, None]
        slots = torch.where(is_padding, first_slots[:, :1], slots)
    return slots.reshape(-1)
