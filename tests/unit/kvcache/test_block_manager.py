from __future__ import annotations

import pytest

from quire.api.errors import ConfigError, KVCacheInvariantError
from quire.api.request import RequestStatus


def test_blocks_are_added_as_tokens_come(make_cache):
    cache = make_cache()
    request = cache.start([1, 2, 3])
    assert cache.manager.block_ids(request) == [0]
    assert cache.append(request, [4]).block_ids == ()
    allocation = cache.append(request, [5])
    assert (allocation.first_index, allocation.block_ids, allocation.copies) == (1, (1,), ())
    usage = cache.manager.usage()
    assert (usage.num_used_blocks, usage.num_wasted_slots, usage.num_cached_blocks) == (2, 3, 1)


def test_at_capacity_and_one_over(make_cache):
    cache = make_cache(num_blocks=2)
    request = cache.start([1] * 8)
    assert cache.manager.num_free_blocks == 0
    before = cache.manager.usage()
    assert cache.manager.allocate(request, 1) is None
    assert cache.admit(cache.request([2])) is None
    assert cache.manager.usage() == before
    cache.manager.check_invariants()
    assert cache.manager.max_servable_tokens == 9


def test_eviction_order_is_least_recently_used_and_tails_first(make_cache):
    cache = make_cache(num_blocks=6)
    old = cache.start([1] * 8)
    new = cache.start([2] * 9)
    assert (cache.manager.block_ids(old), cache.manager.block_ids(new)) == ([0, 1], [2, 3, 4])
    cache.free(old, new)
    # Never used or not full: 4, 5. Then the old tail 1, 0, then the new tail 3, 2.
    taken = cache.start([3] * 20)
    assert cache.manager.block_ids(taken) == [4, 5, 1, 0, 3]
    assert cache.manager.match_prefix(cache.request([2] * 9)).num_tokens == 4
    assert cache.manager.match_prefix(cache.request([1] * 9)).num_tokens == 0


def test_a_hit_protects_a_block_from_eviction(make_cache):
    cache = make_cache(num_blocks=3)
    first = cache.start([1] * 4)
    second = cache.start([2] * 4)
    cache.free(first, second)
    hit = cache.start([1] * 9)
    assert cache.manager.block_ids(hit) == [0, 2, 1]  # 1 was evicted, though freed later than 0
    assert hit.num_cached_tokens == 4
    assert cache.manager.match_prefix(cache.request([2] * 5)).num_tokens == 0


def test_hits_on_free_blocks_count_as_room(make_cache):
    cache = make_cache(num_blocks=3)
    cache.free(cache.start([1] * 8))
    cache.start([2] * 4)
    request = cache.request([1] * 9)
    match = cache.manager.match_prefix(request)
    assert match.num_tokens == 8
    assert cache.manager.num_blocks_needed(9, match) == 3
    assert cache.manager.allocate(request, 1, match) is None
    cache.manager.check_invariants()
    assert cache.manager.match_prefix(request).num_tokens == 8


@pytest.mark.parametrize("num_tokens, num_hit", [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8), (13, 8)])
def test_a_match_leaves_a_token_to_compute(make_cache, num_tokens, num_hit):
    cache = make_cache()
    cache.start([1] * 11)
    assert cache.manager.match_prefix(cache.request([1] * num_tokens)).num_tokens == num_hit


def test_matches_are_isolated_by_salt_fingerprint_and_prompt_logprobs(make_cache):
    cache = make_cache()
    cache.start([1] * 9, salt="a")
    assert cache.manager.match_prefix(cache.request([1] * 9, salt="a")).num_tokens == 8
    assert cache.manager.match_prefix(cache.request([1] * 9, salt="b")).num_tokens == 0
    assert cache.manager.match_prefix(cache.request([1] * 9)).num_tokens == 0
    scored = cache.request([1] * 9, salt="a", prompt_logprobs=1)
    assert cache.manager.match_prefix(scored).num_tokens == 0
    plain = make_cache(caching=False)
    plain.start([1] * 9)
    assert plain.manager.match_prefix(plain.request([1] * 9)).num_tokens == 0
    assert plain.manager.usage().num_cached_blocks == 0


def test_duplicates_stay_in_their_tables_and_are_not_listed(make_cache):
    cache = make_cache()
    cache.start([1] * 4)
    duplicate = cache.start([1] * 4)
    assert cache.manager.block_ids(duplicate) == [1]
    assert cache.manager.usage().num_cached_blocks == 1
    third = cache.start([1] * 5)
    assert cache.manager.block_ids(third) == [0, 2]
    usage = cache.manager.usage()
    assert (usage.num_query_tokens, usage.num_hit_tokens) == (13, 4)


def test_only_known_tokens_are_listed(make_cache):
    cache = make_cache()
    request = cache.start([1] * 3)
    cache.manager.allocate(request, 2)
    request.num_computed_tokens = 5  # planned ahead: tokens 3 and 4 are not known yet
    assert cache.manager.commit(request) == []
    request.output_token_ids += [7]
    assert len(cache.manager.commit(request)) == 1
    assert cache.manager.commit(request) == []
    assert cache.manager.match_prefix(cache.request([1, 1, 1, 7, 0])).num_tokens == 4


@pytest.mark.parametrize("caching", [True, False])
def test_fork_shares_the_tail_until_the_first_write(make_cache, caching):
    cache = make_cache(caching=caching)
    parent = cache.start([1, 2, 3, 4, 5, 6])
    children = [cache.request([1, 2, 3, 4, 5, 6]) for _ in range(2)]
    for child in children:
        cache.manager.fork(parent, child, 5)
        child.num_computed_tokens = 5
    assert [cache.manager.block_ids(child) for child in children] == [[0, 1], [0, 1]]
    assert cache.manager.usage().num_used_blocks == 2
    cache.manager.check_invariants()
    allocation = cache.manager.allocate(children[0], 1)
    assert (allocation.first_index, allocation.block_ids, allocation.copies) == (1, (2,), ((1, 2),))
    cache.compute(children[0])
    allocation = cache.append(parent, [7])  # still shared with the second child
    assert (allocation.first_index, allocation.block_ids, allocation.copies) == (1, (3,), ((1, 3),))
    assert cache.manager.allocate(children[1], 1).copies == ()  # the last holder writes in place
    cache.free(parent, *children)
    assert cache.manager.usage().num_used_blocks == 0


def test_a_copy_counts_as_computed_by_its_writer(make_cache):
    cache = make_cache()
    parent = cache.start([1] * 6)
    child = cache.request([1] * 6)
    cache.manager.fork(parent, child, 5)
    child.num_computed_tokens = 5
    cache.manager.allocate(child, 1)
    assert cache.manager.shares_any(child, {0}) and not cache.manager.shares_any(child, {2})
    assert cache.manager.invalidate(child) == {2}


def test_fork_at_a_block_boundary_replaces_without_a_copy(make_cache):
    cache = make_cache()
    parent = cache.start([1] * 8)
    child = cache.request([1] * 8)
    cache.manager.fork(parent, child, 8)
    child.num_computed_tokens = 4
    allocation = cache.manager.allocate(child, 4)
    assert (allocation.first_index, allocation.block_ids, allocation.copies) == (1, (2,), ())
    cache.compute(child)
    assert cache.append(child, [1]).block_ids == (3,)


def test_a_write_into_a_listed_block_copies_it(make_cache):
    cache = make_cache()
    request = cache.start([1] * 6)
    cache.manager.truncate(request, 3)
    assert cache.manager.block_ids(request) == [0]
    request.num_computed_tokens, request.prompt_token_ids = 3, [1, 1, 1, 2]
    allocation = cache.manager.allocate(request, 1)
    assert (allocation.first_index, allocation.copies) == (0, ((0, 1),))
    cache.compute(request)
    assert cache.manager.match_prefix(cache.request([1] * 5)).num_tokens == 4
    assert cache.manager.match_prefix(cache.request([1, 1, 1, 2, 0])).num_tokens == 4


def test_fork_and_copy_without_room_change_nothing(make_cache):
    cache = make_cache(num_blocks=2)
    parent = cache.start([1] * 6)
    child = cache.request([1] * 6)
    cache.manager.fork(parent, child, 5)
    child.num_computed_tokens = 5
    before = cache.manager.usage()
    assert cache.manager.allocate(child, 1) is None
    assert cache.manager.usage() == before
    cache.manager.check_invariants()
    with pytest.raises(KVCacheInvariantError, match="cannot fork 5 tokens"):
        cache.manager.fork(parent, child, 5)
    with pytest.raises(KVCacheInvariantError, match="cannot fork 9 tokens"):
        cache.manager.fork(parent, cache.request([1] * 9), 9)


def test_lookahead_slots_are_given_and_taken_back(make_cache):
    cache = make_cache()
    request = cache.start([1] * 3)
    allocation = cache.manager.allocate(request, 1, num_lookahead=4)
    assert allocation.block_ids == (1,)
    assert cache.manager.usage().num_wasted_slots == 4
    request.output_token_ids.append(2)
    cache.compute(request)
    cache.manager.truncate(request, 4)
    assert cache.manager.block_ids(request) == [0]
    assert cache.manager.usage().num_wasted_slots == 0


def test_invalidation_unlists_what_a_request_computed_and_names_its_readers(make_cache):
    cache = make_cache()
    first = cache.start([1] * 5)
    failing = cache.start([1] * 9)
    reader = cache.start([1] * 10)
    assert cache.manager.block_ids(reader) == [0, 2, 4]
    bad = cache.manager.invalidate(failing)
    assert bad == {2, 3}
    assert cache.manager.shares_any(reader, bad) and not cache.manager.shares_any(first, bad)
    cache.manager.check_invariants()
    assert cache.manager.match_prefix(cache.request([1] * 9)).num_tokens == 4


def test_invalidation_reaches_provisional_entries_of_a_preempted_request(make_cache):
    cache = make_cache()
    request = cache.request([1] * 4)
    cache.manager.allocate(request, 4)
    request.num_computed_tokens = 4
    assert len(cache.manager.commit(request)) == 1
    cache.free(request)
    assert cache.manager.match_prefix(cache.request([1] * 5)).num_tokens == 4
    assert cache.manager.invalidate(request) == {0}
    assert cache.manager.match_prefix(cache.request([1] * 5)).num_tokens == 0
    assert cache.manager.num_provisional_blocks == 0


def test_reset_forgets_used_and_free_blocks(make_cache):
    cache = make_cache()
    used = cache.start([1] * 5)
    cache.free(cache.start([2] * 4))
    assert cache.manager.usage().num_cached_free_blocks == 1
    assert cache.manager.reset_prefix_cache() == 2
    cache.manager.check_invariants()
    assert cache.manager.usage().num_cached_free_blocks == 0
    assert cache.append(used, [1] * 4).block_ids == (2,)  # freed by the reset, so taken first
    assert cache.manager.match_prefix(cache.request([1] * 9)).num_tokens == 0


def test_a_stale_match_is_refused(make_cache):
    cache = make_cache(num_blocks=3)
    cache.free(cache.start([1] * 4))
    request = cache.request([1] * 5)
    match = cache.manager.match_prefix(request)
    cache.start([2] * 12)
    with pytest.raises(KVCacheInvariantError, match="stale prefix match"):
        cache.manager.allocate(request, 0, match)


def test_a_finished_request_is_forgotten(make_cache):
    cache = make_cache()
    request = cache.start([1] * 4)
    request.status = RequestStatus.FINISHED
    cache.free(request)
    assert not cache.manager.has_blocks(request) and cache.manager.block_ids(request) == []
    cache.free(request)
    assert cache.manager.num_free_blocks == 8


def test_wrong_books_are_noticed(make_cache):
    cache = make_cache()
    request = cache.start([1] * 4)
    cache.manager._tables[request].blocks[0].ref_count = 2
    with pytest.raises(KVCacheInvariantError, match="block 0 counts 2 references, tables hold 1"):
        cache.manager.check_invariants()
    with pytest.raises(ConfigError, match="block_size=0"):
        type(cache.manager)(1, 0)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_reset_repairs_what_an_interrupted_call_left(make_cache, monkeypatch, at):
    cache = make_cache()
    first = cache.start([1, 2, 3, 4, 5])
    cache.free(first)
    start = cache.start([1, 2, 3, 4, 9])
    manager, taken = cache.manager, []
    pool = manager._pool
    take = pool.take

    def interrupted(after=None):
        taken.append(take(after))
        if len(taken) == at:
            raise KeyboardInterrupt
        return taken[-1]

    monkeypatch.setattr(pool, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.start(list(range(20, 32)))
    with pytest.raises(KVCacheInvariantError):
        manager.check_invariants()
    hits = manager.num_hit_tokens
    manager.reset()
    manager.check_invariants()
    usage = manager.usage()
    assert (usage.num_blocks, usage.num_used_blocks, usage.num_cached_blocks) == (8, 0, 0)
    assert manager.num_hit_tokens == hits == 4
    assert not manager.has_blocks(start) and manager.match_prefix(start).num_tokens == 0
    again = cache.start(list(range(32)))
    assert manager.block_ids(again) == list(range(8))


def test_equal_digests_of_different_tokens_are_no_hit(make_cache, monkeypatch):
    class Colliding:
        def __init__(self, data: bytes) -> None:
            pass

        def digest(self) -> bytes:
            return b"the same"

    monkeypatch.setattr("quire.kvcache.digests.sha256", Colliding)
    cache = make_cache()
    cache.start([1] * 4)
    assert cache.manager.match_prefix(cache.request([1] * 5)).num_tokens == 4
    assert cache.manager.match_prefix(cache.request([2] * 5)).num_tokens == 0
    other = cache.start([2] * 5)
    assert other.num_cached_tokens == 0


def test_a_new_fingerprint_hides_older_blocks_until_it_returns(make_cache):
    cache = make_cache(fingerprint=b"a")
    running = cache.start([1] * 4)
    cache.manager.set_fingerprint(b"b")
    assert cache.manager.match_prefix(cache.request([1] * 5)).num_tokens == 0
    cache.append(running, [1] * 4)  # goes on under its own
    cache.manager.set_fingerprint(b"a")
    assert cache.manager.match_prefix(cache.request([1] * 9)).num_tokens == 8
