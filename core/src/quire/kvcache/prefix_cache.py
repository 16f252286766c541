"""The map from the content of full blocks to the blocks that hold it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from quire.api.errors import KVCacheInvariantError
from quire.kvcache.block_pool import Block


class PrefixCache:
    """Digest to block, for full blocks. The first block computed for a digest keeps the entry.

    An entry is provisional from the plan that computes its block until that plan's update: usable at
    once, and dropped again if the owner's row fails.
    """

    def __init__(self) -> None:
        self._blocks: dict[bytes, Block] = {}
        self._owners: dict[bytes, object] = {}  # of provisional entries

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def num_provisional(self) -> int:
        """Entries whose plan has not been updated yet."""
        return len(self._owners)

    def find(self, digest: bytes, token_ids: Sequence[int]) -> Block | None:
        """The block listed under a digest that holds these tokens; None when there is none.

        The tokens are compared although two inputs of one digest are not to be expected: another
        request's context must never be served, whatever went wrong.
        """
        block = self._blocks.get(digest)
        return block if block is not None and block.token_ids == tuple(token_ids) else None

    def enter(self, digest: bytes, block: Block, owner: object, token_ids: Sequence[int]) -> bool:
        """List a block, provisionally. False when another block is listed already: that one stays."""
        if digest in self._blocks:
            return False
        if block.digest is not None:
            raise KVCacheInvariantError(f"block {block.block_id} is listed under another digest already")
        block.digest = digest
        block.token_ids = tuple(token_ids)
        self._blocks[digest] = block
        self._owners[digest] = owner
        return True

    def confirm(self, digests: Iterable[bytes], owner: object) -> None:
        """The rows that computed these entries succeeded. Entries dropped meanwhile are ignored."""
        for digest in digests:
            if self._owners.get(digest) is owner:
                del self._owners[digest]

    def provisional_blocks(self, owner: object) -> list[Block]:
        """The blocks of an owner's provisional entries."""
        return [self._blocks[digest] for digest, of in self._owners.items() if of is owner]

    def remove(self, block: Block) -> None:
        """Unlist a block; its `digest` stays for the pool to drop."""
        if block.digest is None or self._blocks.get(block.digest) is not block:
            raise KVCacheInvariantError(f"block {block.block_id} is not listed under its digest")
        del self._blocks[block.digest]
        self._owners.pop(block.digest, None)

    def listed_blocks(self) -> Collection[Block]:
        """All listed blocks, oldest entry first."""
        return self._blocks.values()

    def check_invariants(self, blocks: Iterable[Block]) -> None:
        """Raise KVCacheInvariantError unless map and blocks agree both ways."""
        num_listed = 0
        for block in blocks:
            if block.digest is None:
                continue
            num_listed += 1
            if self._blocks.get(block.digest) is not block:
                raise KVCacheInvariantError(f"block {block.block_id} has a digest that is not listed")
        if num_listed != len(self._blocks):
            raise KVCacheInvariantError(f"{len(self._blocks)} entries are listed for {num_listed} blocks")
        if not self._owners.keys() <= self._blocks.keys():
            raise KVCacheInvariantError("a provisional entry is not listed")
