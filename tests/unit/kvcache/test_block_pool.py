from __future__ import annotations

import pytest

from quire.api.errors import ConfigError, KVCacheInvariantError
from quire.kvcache.block_pool import EXTENT, BlockPool


def free_ids(pool: BlockPool) -> list[int]:
    pool.check_invariants()
    return [block.block_id for block in pool.iterate_free()]


def test_blocks_are_taken_in_order_and_unhashed_ones_reused_first():
    pool = BlockPool(4)
    taken = [pool.take() for _ in range(3)]
    assert [block.block_id for block in taken] == [0, 1, 2]
    pool.release(taken[1])
    assert free_ids(pool) == [1, 3]
    taken[2].digest = b"x"
    pool.release(taken[2])
    assert free_ids(pool) == [1, 3, 2]
    assert (pool.num_free, pool.num_cached_free) == (3, 1)


def test_cached_blocks_are_revived_from_anywhere_in_the_queue():
    pool = BlockPool(5)
    blocks = [pool.take() for _ in range(5)]
    for block in blocks:
        block.digest = bytes([block.block_id])
        pool.release(block)
    for block_id, left in ((2, [0, 1, 3, 4]), (0, [1, 3, 4]), (4, [1, 3])):
        pool.share(blocks[block_id])
        assert free_ids(pool) == left
    pool.release(blocks[2])
    assert free_ids(pool) == [1, 3, 2]


def test_a_dropped_digest_moves_a_free_block_to_the_head():
    pool = BlockPool(3)
    blocks = [pool.take() for _ in range(3)]
    for block in blocks:
        block.digest = bytes([block.block_id])
        pool.release(block)
    pool.drop_digest(blocks[1])
    assert free_ids(pool) == [1, 0, 2]
    assert pool.num_cached_free == 2
    with pytest.raises(KVCacheInvariantError, match="block 0 was taken while"):
        pool.take(), pool.take()


def test_requests_that_grow_beside_each_other_get_runs():
    pool = BlockPool(4 * EXTENT + 3)
    first, second = [pool.take()], [pool.take()]
    for _ in range(EXTENT - 1):
        first.append(pool.take(first[-1]))
        second.append(pool.take(second[-1]))
    assert [block.block_id for block in first] == list(range(EXTENT))
    assert [block.block_id for block in second] == list(range(EXTENT, 2 * EXTENT))
    third = [pool.take()]
    first.append(pool.take(first[-1]))  # its neighbour is the second's: a run elsewhere
    assert [third[0].block_id, first[-1].block_id] == [2 * EXTENT, 3 * EXTENT]
    pool.check_invariants()
    assert pool.take().block_id == pool.take().block_id - 1, "no extent is empty: by the queue"


def test_an_extent_that_empties_is_used_again():
    pool = BlockPool(2 * EXTENT)
    taken = [pool.take() for _ in range(2 * EXTENT)]
    for block in reversed(taken[EXTENT:]):
        pool.release(block)
        pool.check_invariants()
    taken[3].digest = b"x"
    for block in taken[:EXTENT]:
        pool.release(block)
    pool.check_invariants()
    assert pool.take().block_id == EXTENT
    pool.drop_digest(taken[3])
    assert pool.take(pool.blocks[2]).block_id == 3, "the neighbour, wherever it is"
    assert pool.take(pool.blocks[2 * EXTENT - 1]).block_id == 2
    pool.check_invariants()


def test_what_is_cached_is_taken_last_and_in_the_order_of_its_release():
    pool = BlockPool(EXTENT)
    taken = [pool.take() for _ in range(EXTENT)]
    for block in reversed(taken[2:]):
        block.digest = bytes([block.block_id])
        pool.release(block)
    pool.release(taken[0])
    assert pool.take(taken[1]).block_id == 0, "the neighbour holds something"
    assert pool.peek(taken[1]).block_id == EXTENT - 1


def test_double_free_and_exhaustion_raise():
    pool = BlockPool(1)
    block = pool.take()
    with pytest.raises(KVCacheInvariantError, match="all 1 blocks are in use"):
        pool.take()
    pool.release(block)
    with pytest.raises(KVCacheInvariantError, match="block 0 was freed twice"):
        pool.release(block)
    with pytest.raises(ConfigError, match="num_blocks=0"):
        BlockPool(0)


@pytest.mark.parametrize("defect", ["count", "link", "reference", "cached", "lost"])
def test_invariants_see_each_defect(defect):
    pool = BlockPool(4)
    block = pool.take()
    if defect == "count":
        pool.num_free += 1
    elif defect == "link":
        pool.blocks[2].previous = None
    elif defect == "reference":
        pool.blocks[2].ref_count = 1
    elif defect == "cached":
        pool.blocks[2].digest = b"x"
    else:
        block.ref_count = 0
    with pytest.raises(KVCacheInvariantError):
        pool.check_invariants()


@pytest.mark.parametrize("defect", ["count", "list"])
def test_invariants_see_a_wrong_extent(defect):
    pool = BlockPool(2 * EXTENT)
    pool.take()
    pool.check_invariants()
    if defect == "count":
        pool._num_empty[0] += 1
    else:
        pool._empty_extents.clear()
    with pytest.raises(KVCacheInvariantError, match="extent"):
        pool.check_invariants()
