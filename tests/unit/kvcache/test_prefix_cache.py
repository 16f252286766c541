from __future__ import annotations

import pytest

from quire.api.errors import KVCacheInvariantError
from quire.kvcache.block_pool import Block
from quire.kvcache.prefix_cache import PrefixCache


def test_every_part_of_the_key_matters():
    cache = PrefixCache(2)
    digests = {
        cache.root_digest(""),
        cache.root_digest("a"),
        PrefixCache(2, b"a").root_digest(""),
        PrefixCache(4).root_digest(""),
        PrefixCache(2, b"ab").root_digest("c"),
        PrefixCache(2, b"a").root_digest("bc"),
        cache.child_digest(cache.root_digest(""), [1, 2]),
        cache.child_digest(cache.root_digest(""), [2, 1]),
        cache.child_digest(cache.root_digest("a"), [1, 2]),
        cache.child_digest(cache.root_digest(""), [1, 2 + 2**32]),
    }
    assert len(digests) == 10
    assert cache.root_digest("\ud800") != cache.root_digest("")
    assert PrefixCache(2).root_digest("a") == cache.root_digest("a")
    with pytest.raises(KVCacheInvariantError, match="3 tokens as a block of 2"):
        cache.child_digest(b"", [1, 2, 3])


def test_the_first_block_keeps_the_entry():
    cache, owner = PrefixCache(2), object()
    first, second = Block(0), Block(1)
    assert cache.enter(b"x", first, owner)
    assert not cache.enter(b"x", second, owner)
    assert cache.find(b"x") is first and second.digest is None
    cache.check_invariants([first, second])
    with pytest.raises(KVCacheInvariantError, match="another digest"):
        cache.enter(b"y", first, owner)


def test_provisional_entries_are_confirmed_by_their_owner_only():
    cache, owner = PrefixCache(2), object()
    block = Block(0)
    cache.enter(b"x", block, owner)
    assert cache.provisional_blocks(owner) == [block]
    cache.confirm([b"x"], object())
    assert cache.num_provisional == 1
    cache.confirm([b"x", b"unknown"], owner)
    assert cache.num_provisional == 0 and cache.find(b"x") is block


def test_removal_and_its_errors():
    cache = PrefixCache(2)
    block = Block(0)
    with pytest.raises(KVCacheInvariantError, match="not listed"):
        cache.remove(block)
    cache.enter(b"x", block, None)
    cache.remove(block)
    assert len(cache) == 0
    with pytest.raises(KVCacheInvariantError, match="has a digest that is not listed"):
        cache.check_invariants([block])
