"""A request's ordered blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from quire.api.errors import KVCacheInvariantError
from quire.kvcache.block_pool import Block


@dataclass(slots=True, eq=False)
class BlockTable:
    """The blocks of one request in one KV group, and the digests of its full ones.

    Attributes:
        digests: the chain so far, one digest per leading full block; may reach past `blocks`, since it
            follows from the tokens alone and outlives the table.
        num_shared_blocks: leading blocks whose content came from others (prefix hits, a fork).
        num_committed_blocks: leading blocks whose digest was offered to the prefix cache.
        num_tokens: tokens that have a place, without lookahead.
    """

    blocks: list[Block]
    digests: list[bytes] = field(default_factory=list)
    num_shared_blocks: int = 0
    num_committed_blocks: int = 0
    num_tokens: int = 0

    @property
    def block_ids(self) -> list[int]:
        """Physical ids, in order."""
        return [block.block_id for block in self.blocks]

    @property
    def has_exclusive_block(self) -> bool:
        """Whether freeing the table frees a block; looks at the tail first, so mostly O(1)."""
        return any(block.ref_count == 1 for block in reversed(self.blocks))

    def check_invariants(self, block_size: int, request_id: str) -> None:
        """Raise KVCacheInvariantError unless blocks, tokens and digests agree."""
        if self.num_tokens > len(self.blocks) * block_size:
            raise KVCacheInvariantError(f"the table of {request_id!r} is shorter than its tokens")
        for block, digest in zip(self.blocks[: self.num_committed_blocks], self.digests, strict=False):
            if block.digest not in (None, digest):
                raise KVCacheInvariantError(
                    f"block {block.block_id} of {request_id!r} is listed with other content"
                )
