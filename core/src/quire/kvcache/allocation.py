"""What the block manager answers: a prefix match, an allocation, figures of a moment."""

from __future__ import annotations

from dataclasses import dataclass

from quire.kvcache.block_pool import Block


@dataclass(slots=True, frozen=True)
class PrefixMatch:
    """Cached blocks that hold a request's first `num_tokens` tokens. Valid until the next change."""

    blocks: tuple[Block, ...] = ()
    num_tokens: int = 0


@dataclass(slots=True, frozen=True)
class Allocation:
    """What an allocation changed.

    Attributes:
        first_index: where in the block table `block_ids` begin.
        block_ids: the table from there to its end; empty when nothing changed.
        copies: (source, destination) block ids to copy before anything is written.
    """

    first_index: int = 0
    block_ids: tuple[int, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()


@dataclass(slots=True, frozen=True)
class KVCacheUsage:
    """Figures of a moment; the token counters only grow.

    Attributes:
        num_wasted_slots: slots that tables hold and no token uses (tails and lookahead).
    """

    num_blocks: int
    num_used_blocks: int
    num_cached_free_blocks: int
    num_cached_blocks: int
    num_wasted_slots: int
    num_query_tokens: int
    num_hit_tokens: int
