from __future__ import annotations

import pytest

from quire.api.errors import KVCacheInvariantError
from quire.kvcache.block_pool import Block
from quire.kvcache.prefix_cache import PrefixCache


def test_the_first_block_keeps_the_entry():
    cache, owner = PrefixCache(), object()
    first, second = Block(0), Block(1)
    assert cache.enter(b"x", first, owner, (1, 2))
    assert not cache.enter(b"x", second, owner, (1, 2))
    assert cache.find(b"x", [1, 2]) is first and second.digest is None
    cache.check_invariants([first, second])
    with pytest.raises(KVCacheInvariantError, match="another digest"):
        cache.enter(b"y", first, owner, (1, 2))


def test_provisional_entries_are_confirmed_by_their_owner_only():
    cache, owner = PrefixCache(), object()
    block = Block(0)
    cache.enter(b"x", block, owner, (1, 2))
    assert cache.provisional_blocks(owner) == [block]
    cache.confirm([b"x"], object())
    assert cache.num_provisional == 1
    cache.confirm([b"x", b"unknown"], owner)
    assert cache.num_provisional == 0 and cache.find(b"x", [1, 2]) is block


def test_removal_and_its_errors():
    cache = PrefixCache()
    block = Block(0)
    with pytest.raises(KVCacheInvariantError, match="not listed"):
        cache.remove(block)
    cache.enter(b"x", block, None, (1, 2))
    cache.remove(block)
    assert len(cache) == 0
    with pytest.raises(KVCacheInvariantError, match="has a digest that is not listed"):
        cache.check_invariants([block])
