"""Block manager v2: prefix caching by hash and copy-on-write forks over one pool of blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from quire.api.errors import ConfigError, KVCacheInvariantError
from quire.api.request import Request
from quire.kvcache.allocation import Allocation, KVCacheUsage, PrefixMatch
from quire.kvcache.block_pool import Block, BlockPool
from quire.kvcache.block_table import BlockTable
from quire.kvcache.digests import DigestChains
from quire.kvcache.prefix_cache import PrefixCache


class BlockManager:
    """Gives requests blocks, shares them, takes them back.

    Full blocks with known tokens are immutable and listed in the prefix cache; a write into a listed or
    shared block replaces it in the writer's table by a copy. A failed call changes nothing.

    Args:
        fingerprint: part of every digest, see `DigestChains`.
    """

    def __init__(
        self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True, fingerprint: bytes = b""
    ) -> None:
        if block_size < 1:
            raise ConfigError(f"block_size={block_size}: a block holds at least 1 token")
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._pool = BlockPool(num_blocks)
        self._cache = PrefixCache()
        self._chains = DigestChains(block_size, fingerprint)
        self._tables: dict[Request, BlockTable] = {}
        self._unchanged = Allocation()
        self._no_match = PrefixMatch()
        self.num_query_tokens = 0
        self.num_hit_tokens = 0

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be taken now, cached ones included."""
        return self._pool.num_free

    @property
    def max_servable_tokens(self) -> int:
        """Tokens, prompt and output, that one request alone can reach: the last one needs no slot."""
        return self._pool.num_blocks * self.block_size + 1

    @property
    def num_provisional_blocks(self) -> int:
        """Cache entries that wait for their plan's update."""
        return self._cache.num_provisional

    def has_blocks(self, request: Request) -> bool:
        """Whether the request has a block table."""
        return request in self._tables

    def block_ids(self, request: Request) -> list[int]:
        """The request's block table; empty when it has none."""
        table = self._tables.get(request)
        return [] if table is None else table.block_ids

    def match_prefix(self, request: Request) -> PrefixMatch:
        """The longest chain of cached blocks, of at most all tokens but one, so that one is computed."""
        if not self.enable_prefix_caching or not request.reads_prefix_cache:
            return self._no_match
        blocks: list[Block] = []
        for index in range((request.num_tokens - 1) // self.block_size):
            block = self._cache.find(self._chains.digest(request, index), self._token_ids(request, index))
            if block is None:
                break
            blocks.append(block)
        return PrefixMatch(tuple(blocks), len(blocks) * self.block_size)

    def num_blocks_needed(self, num_tokens: int, match: PrefixMatch | None = None) -> int:
        """Free blocks that a new table for `num_tokens` takes; hits on free blocks take them too."""
        needed = -(-num_tokens // self.block_size)
        if match is None:
            return needed
        return needed - sum(block.ref_count > 0 for block in match.blocks)

    def num_missing_blocks(self, request: Request, num_tokens: int) -> int:
        """Blocks that a request's table lacks to hold `num_tokens`."""
        table = self._tables.get(request)
        return max(0, -(-num_tokens // self.block_size) - (0 if table is None else len(table.blocks)))

    def allocate(
        self, request: Request, num_new_tokens: int, match: PrefixMatch | None = None, num_lookahead: int = 0
    ) -> Allocation | None:
        """Make room for a request's next tokens; None when there is not enough of it now.

        Args:
            request: its `num_computed_tokens` says where the new tokens begin.
            num_new_tokens: tokens after the computed ones (after the match, for a first allocation).
            match: of `match_prefix`, with no other call in between; only without a table.
            num_lookahead: further slots, for tokens that are not verified yet.
        """
        table = self._tables.get(request)
        if table is None:
            return self._allocate_table(request, num_new_tokens, match or self._no_match, num_lookahead)
        start = request.num_computed_tokens
        end = start + num_new_tokens + num_lookahead
        blocks, size = table.blocks, self.block_size
        num_blocks = -(-end // size)
        held = range(start // size, min(num_blocks, len(blocks)))
        replaced = [i for i in held if blocks[i].ref_count > 1 or blocks[i].digest is not None]
        num_missing = num_blocks - len(blocks)
        if not replaced and num_missing <= 0:
            table.num_tokens = start + num_new_tokens
            return self._unchanged
        if len(replaced) + max(0, num_missing) > self._pool.num_free:
            return None
        first = replaced[0] if replaced else len(blocks)
        copies = self._replace(table, replaced, start)
        for _ in range(num_missing):
            blocks.append(self._take(blocks[-1] if blocks else None))
        table.num_tokens = start + num_new_tokens
        return Allocation(first, tuple([block.block_id for block in blocks[first:]]), copies)

    def fork(self, parent: Request, child: Request, num_shared_tokens: int) -> None:
        """Give `child` the parent's blocks that hold its first tokens, a partial tail included.

        The caller sets the child's `num_computed_tokens`; its first write into the tail copies it.

        Raises:
            KVCacheInvariantError: the parent holds fewer tokens, or the child has blocks.
        """
        table = self._tables.get(parent)
        if table is None or table.num_tokens < num_shared_tokens or child in self._tables:
            raise KVCacheInvariantError(
                f"cannot fork {num_shared_tokens} tokens of {parent.request_id!r} for {child.request_id!r}"
            )
        shared = table.blocks[: -(-num_shared_tokens // self.block_size)]
        for block in shared:
            self._pool.share(block)
        num_full = num_shared_tokens // self.block_size
        digests = table.digests[:num_full]
        if self.enable_prefix_caching:
            self._chains.adopt(child, digests)
        self._tables[child] = BlockTable(
            shared, digests, len(shared), min(table.num_committed_blocks, num_full), num_shared_tokens
        )

    def commit(self, request: Request) -> list[bytes]:
        """List the full blocks whose tokens are known and computed; returns the new entries' digests.

        They are provisional: give them to `confirm` when the step that computes them has succeeded.
        """
        table = self._tables.get(request)
        if table is None or not self.enable_prefix_caching:
            return []
        num_known = min(request.num_computed_tokens, request.num_tokens)
        entered = []
        for index in range(table.num_committed_blocks, num_known // self.block_size):
            block = table.blocks[index]
            digest = self._chains.digest(request, index)
            if block.digest is None:
                token_ids = self._token_ids(request, index)
                if self._cache.enter(digest, block, request, token_ids):
                    entered.append(digest)
            table.num_committed_blocks = index + 1
        return entered

    def confirm(self, request: Request, digests: Iterable[bytes]) -> None:
        """The step that computed these entries of `commit` has succeeded."""
        self._cache.confirm(digests, request)

    def free(self, request: Request) -> None:
        """Drop the request's blocks, tail first, so that tails are evicted before what they extend.

        A finished request is forgotten; without blocks this is all that happens.
        """
        table = self._tables.pop(request, None)
        if table is not None:
            for block in reversed(table.blocks):
                self._pool.release(block)
        if request.is_finished:
            self._chains.forget(request)

    def truncate(self, request: Request, num_tokens: int) -> int | None:
        """Keep the first tokens only (a rollback of unverified ones); frees the blocks after them.

        Returns:
            How many blocks are left; None when there were no more.
        """
        table = self._tables[request]
        surplus = table.blocks[-(-num_tokens // self.block_size) :]
        for block in reversed(surplus):
            table.blocks.pop()
            self._pool.release(block)
        num_full = num_tokens // self.block_size
        del table.digests[num_full:]
        table.num_tokens = min(table.num_tokens, num_tokens)
        table.num_shared_blocks = min(table.num_shared_blocks, len(table.blocks))
        table.num_committed_blocks = min(table.num_committed_blocks, num_full)
        return len(table.blocks) if surplus else None

    def frees_blocks(self, request: Request) -> bool:
        """Whether `free` would free a block now (it does not when all of them are shared)."""
        table = self._tables.get(request)
        return table is not None and table.has_exclusive_block

    def invalidate(self, request: Request) -> set[int]:
        """Unlist all that a failed request computed; returns the ids of the blocks it did compute."""
        suspects = {block.block_id: block for block in self._cache.provisional_blocks(request)}
        table = self._tables.get(request)
        if table is not None:
            suspects |= {block.block_id: block for block in table.blocks[table.num_shared_blocks :]}
        for block in suspects.values():
            if block.digest is not None:
                self._unlist(block)
        return set(suspects)

    def shares_any(self, request: Request, block_ids: set[int]) -> bool:
        """Whether one of these blocks came to the request from others."""
        table = self._tables.get(request)
        if table is None:
            return False
        return any(block.block_id in block_ids for block in table.blocks[: table.num_shared_blocks])

    def reset_prefix_cache(self) -> int:
        """Unlist every block, used ones too (their requests keep them); returns how many."""
        blocks = list(self._cache.listed_blocks())
        for block in blocks:
            self._unlist(block)
        return len(blocks)

    def reset(self) -> None:
        """Start over after an interrupted call, whatever state it left: all blocks are free, nothing is cached.

        Every block table, match and allocation handed out before is void; the counters stay.
        """
        self._pool = BlockPool(self._pool.num_blocks)
        self._cache = PrefixCache()
        self._chains.clear()
        self._tables.clear()

    def set_fingerprint(self, fingerprint: bytes) -> None:
        """Make it part of the digests of requests from now on; those that have blocks keep theirs."""
        self._chains.set_fingerprint(fingerprint)

    def usage(self) -> KVCacheUsage:
        """Figures of now. O(number of requests with blocks)."""
        tables = self._tables.values()
        return KVCacheUsage(
            num_blocks=self._pool.num_blocks,
            num_used_blocks=self._pool.num_blocks - self._pool.num_free,
            num_cached_free_blocks=self._pool.num_cached_free,
            num_cached_blocks=len(self._cache),
            num_wasted_slots=sum(len(table.blocks) * self.block_size - table.num_tokens for table in tables),
            num_query_tokens=self.num_query_tokens,
            num_hit_tokens=self.num_hit_tokens,
        )

    def check_invariants(self) -> None:
        """Check pool, cache and tables against each other. O(blocks): for tests and idle moments.

        Raises:
            KVCacheInvariantError: they do not agree.
        """
        self._pool.check_invariants()
        self._cache.check_invariants(self._pool.blocks)
        counts: Counter[int] = Counter()
        for request, table in self._tables.items():
            counts.update(table.block_ids)
            table.check_invariants(self.block_size, request.request_id)
        for block in self._pool.blocks:
            if block.ref_count != counts[block.block_id]:
                raise KVCacheInvariantError(
                    f"block {block.block_id} counts {block.ref_count} references, "
                    f"tables hold {counts[block.block_id]}"
                )

    def _allocate_table(
        self, request: Request, num_new_tokens: int, match: PrefixMatch, num_lookahead: int
    ) -> Allocation | None:
        num_tokens = match.num_tokens + num_new_tokens
        if self.num_blocks_needed(num_tokens + num_lookahead, match) > self._pool.num_free:
            return None
        digests = self._chains.of(request) if self.enable_prefix_caching else []
        for block, digest in zip(match.blocks, digests, strict=False):
            if block.digest != digest:
                raise KVCacheInvariantError(f"a stale prefix match was used for {request.request_id!r}")
        blocks = list(match.blocks)
        for block in blocks:
            self._pool.share(block)
        num_blocks = -(-(num_tokens + num_lookahead) // self.block_size)
        for _ in range(num_blocks - len(blocks)):
            blocks.append(self._take(blocks[-1] if blocks else None))
        table = BlockTable(blocks, digests, len(match.blocks), len(match.blocks), num_tokens)
        self._tables[request] = table
        if self.enable_prefix_caching and request.reads_prefix_cache:
            self.num_query_tokens += request.num_tokens
            self.num_hit_tokens += match.num_tokens
        return Allocation(0, tuple(table.block_ids))

    def _token_ids(self, request: Request, index: int) -> Sequence[int]:
        """The tokens of a request's full block."""
        return request.token_ids(index * self.block_size, (index + 1) * self.block_size)

    def _replace(self, table: BlockTable, indices: list[int], start: int) -> tuple[tuple[int, int], ...]:
        copies = []
        for index in indices:
            source = table.blocks[index]
            copy = table.blocks[index] = self._take()
            if index * self.block_size < start:
                copies.append((source.block_id, copy.block_id))
            self._pool.release(source)
        if indices:
            table.num_shared_blocks = min(table.num_shared_blocks, indices[0])
            table.num_committed_blocks = min(table.num_committed_blocks, indices[0])
        return tuple(copies)

    def _take(self, after: Block | None = None) -> Block:
        victim = self._pool.peek(after)
        if victim.digest is not None:
            self._unlist(victim)
            after = None  # it is the head now, or of an extent that has become empty
        return self._pool.take(after)

    def _unlist(self, block: Block) -> None:
        self._cache.remove(block)
        self._pool.drop_digest(block)
