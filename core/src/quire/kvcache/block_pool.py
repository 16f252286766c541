"""The physical blocks: reference counts, the free queue that is also the eviction order, and runs of free blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quire.api.errors import ConfigError, KVCacheInvariantError

EXTENT = 8
"""Neighbouring blocks that one request gets where there is a choice: memory reads runs faster than single blocks."""


@dataclass(slots=True, eq=False)
class Block:
    """One physical block of the KV cache.

    Attributes:
        ref_count: block tables that hold it; 0 while it is in the free queue.
        digest: key under which the prefix cache lists it; None while its content may change.
        token_ids: what it holds, while it is listed; compared on every hit.
        previous, next: neighbours in the free queue, toward its head and its tail.
    """

    block_id: int
    ref_count: int = 0
    digest: bytes | None = None
    token_ids: tuple[int, ...] = ()
    previous: Block | None = None
    next: Block | None = None


class BlockPool:
    """All blocks, created once, and a queue of the free ones that is linked through them.

    The head is taken first. A freed block that holds nothing reusable goes to the head; a cached one
    goes to the tail, keeps its digest and can be revived by a hit in O(1), wherever it is.

    Among the blocks that hold nothing reusable, the one behind the taker's last block comes first, then the
    first one of an extent (EXTENT neighbours) of which all hold nothing: requests that grow beside each other
    get runs, and nothing is reserved. What is cached is evicted in no other order than the queue's.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ConfigError(f"num_blocks={num_blocks}: a KV cache needs at least 1 block")
        self.blocks = [Block(block_id) for block_id in range(num_blocks)]
        self.num_free = 0
        self.num_cached_free = 0
        self._head: Block | None = None
        self._tail: Block | None = None
        self._num_empty = [0] * (
            num_blocks // EXTENT
        )  # of each extent: free blocks that hold nothing reusable
        self._empty_extents: dict[int, None] = {}  # the last one is used first
        for block in self.blocks:
            self._append(block)
        for block in reversed(self.blocks):
            self._count_empty(block, 1)

    @property
    def num_blocks(self) -> int:
        """Free and used blocks."""
        return len(self.blocks)

    def peek(self, after: Block | None = None) -> Block:
        """The block that `take` will return.

        Args:
            after: the taker's last block, whose neighbour is preferred.

        Raises:
            KVCacheInvariantError: no block is free (callers ask `num_free` first).
        """
        if self._head is None:
            raise KVCacheInvariantError(f"took a block, but all {self.num_blocks} blocks are in use")
        if after is not None and after.block_id + 1 < self.num_blocks:
            neighbour = self.blocks[after.block_id + 1]
            if neighbour.ref_count == 0 and neighbour.digest is None:
                return neighbour
        if self._empty_extents:
            return self.blocks[next(reversed(self._empty_extents)) * EXTENT]
        return self._head

    def take(self, after: Block | None = None) -> Block:
        """Remove a block from the free queue and hold it once; see `peek`. Its digest must have been dropped."""
        block = self.peek(after)
        if block.digest is not None:
            raise KVCacheInvariantError(f"block {block.block_id} was taken while the prefix cache lists it")
        self._unlink(block)
        self._count_empty(block, -1)
        block.ref_count = 1
        return block

    def share(self, block: Block) -> None:
        """Hold a block once more; a free one leaves the queue with its content."""
        if block.ref_count == 0:
            self._unlink(block)
            if block.digest is None:
                self._count_empty(block, -1)
            else:
                self.num_cached_free -= 1
        block.ref_count += 1

    def release(self, block: Block) -> None:
        """Drop one reference; the last one frees the block.

        Raises:
            KVCacheInvariantError: the block is free already.
        """
        if block.ref_count <= 0:
            raise KVCacheInvariantError(f"block {block.block_id} was freed twice")
        block.ref_count -= 1
        if block.ref_count:
            return
        if block.digest is None:
            self._prepend(block)
            self._count_empty(block, 1)
        else:
            self._append(block)
            self.num_cached_free += 1

    def drop_digest(self, block: Block) -> None:
        """Make a block's content unreachable; a free one becomes the next to be taken."""
        if block.digest is None:
            return
        block.digest = None
        if block.ref_count == 0:
            self.num_cached_free -= 1
            self._unlink(block)
            self._prepend(block)
            self._count_empty(block, 1)

    def iterate_free(self) -> Iterator[Block]:
        """The free blocks in the queue's order."""
        block = self._head
        while block is not None:
            yield block
            block = block.next

    def check_invariants(self) -> None:
        """Raise KVCacheInvariantError unless queue, counts and links agree."""
        num_seen = num_cached = 0
        previous: Block | None = None
        for block in self.iterate_free():
            if block.previous is not previous:
                raise KVCacheInvariantError(f"free queue: block {block.block_id} has a wrong previous link")
            if block.ref_count != 0:
                raise KVCacheInvariantError(f"free block {block.block_id} has {block.ref_count} references")
            num_seen += 1
            num_cached += block.digest is not None
            if num_seen > self.num_blocks:
                raise KVCacheInvariantError("free queue: it is longer than the pool, so it has a cycle")
            previous = block
        if previous is not self._tail:
            raise KVCacheInvariantError("free queue: the tail is not the last block")
        if num_seen != self.num_free or num_cached != self.num_cached_free:
            raise KVCacheInvariantError(
                f"free queue holds {num_seen} blocks ({num_cached} cached), "
                f"the counters say {self.num_free} ({self.num_cached_free})"
            )
        for extent, num_empty in enumerate(self._num_empty):
            some = self.blocks[extent * EXTENT : (extent + 1) * EXTENT]
            if num_empty != sum(block.ref_count == 0 and block.digest is None for block in some):
                raise KVCacheInvariantError(
                    f"extent {extent} does not have the {num_empty} empty blocks counted"
                )
            if (num_empty == EXTENT) != (extent in self._empty_extents):
                raise KVCacheInvariantError(f"extent {extent} of {num_empty} empty blocks is listed wrongly")
        num_used = sum(block.ref_count > 0 for block in self.blocks)
        if num_used + num_seen != self.num_blocks:
            raise KVCacheInvariantError(f"{num_used} used + {num_seen} free blocks are not {self.num_blocks}")

    def _count_empty(self, block: Block, change: int) -> None:
        extent = block.block_id // EXTENT
        if extent == len(self._num_empty):  # the last blocks, too few for an extent
            return
        if self._num_empty[extent] == EXTENT:
            del self._empty_extents[extent]
        self._num_empty[extent] += change
        if self._num_empty[extent] == EXTENT:
            self._empty_extents[extent] = None

    def _append(self, block: Block) -> None:
        block.previous, block.next = self._tail, None
        if self._tail is None:
            self._head = block
        else:
            self._tail.next = block
        self._tail = block
        self.num_free += 1

    def _prepend(self, block: Block) -> None:
        block.previous, block.next = None, self._head
        if self._head is None:
            self._tail = block
        else:
            self._head.previous = block
        self._head = block
        self.num_free += 1

    def _unlink(self, block: Block) -> None:
        if block.previous is None:
            self._head = block.next
        else:
            block.previous.next = block.next
        if block.next is None:
            self._tail = block.previous
        else:
            block.next.previous = block.previous
        block.previous = block.next = None
        self.num_free -= 1
