"""Triton kernel that cuts a step's attention into items, which programs of `attend` take.

A Q block is one or more tokens of one request; its rows in matrix products are theirs times the query heads
of one KV head. A tile is a few consecutive tokens of a context. An item is one Q block over a range of tiles:
what one program per KV head computes. Items are made on the device, from lengths that lie there, so that
grids depend on nothing but sizes: a captured graph replays at any lengths.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

ITEM = tl.constexpr(8)
"""int32 fields of an item: end tile, first tile, row, first token, tokens, first position, slot, unused.

Positions and tiles count from the start of the context; tokens from the start of the step. An end of 0: no
item. The slot is that of the partial result, -1 where the item is all of its Q block's tiles.
"""
MERGE = tl.constexpr(4)
"""int32 fields of a merge of partial results: how many, first slot, first token, tokens. 0 of them: no merge."""


@triton.jit
def _q_blocks(
    query_start,
    seq_lens,
    index,
    num_rows,
    num_blocks,
    search_steps,
    window,
    IS_DECODE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Q blocks by index: row, first token, tokens, first position, first tile, end tile.

    Those of row r begin at r + its first token // BLOCK_TOKENS: an upper bound that needs no sum over rows.
    Indices between the rows' blocks are blocks of no tiles, and so are rows of no context (padding).
    """
    origin = tl.load(query_start)
    row = tl.zeros_like(index)
    if IS_DECODE:  # rows of one token each
        row = tl.minimum(index, num_rows - 1)
        offset = index - row
    else:
        for step in range(1, search_steps + 1):
            later = row + (1 << (search_steps - step))
            start = tl.load(query_start + tl.minimum(later, num_rows - 1)) - origin
            row = tl.where((later < num_rows) & (start // BLOCK_TOKENS + later <= index), later, row)
        start = tl.load(query_start + row) - origin
        offset = (index - start // BLOCK_TOKENS - row) * BLOCK_TOKENS
    start = tl.load(query_start + row)
    length = tl.load(query_start + row + 1) - start
    tokens = tl.minimum(length - offset, BLOCK_TOKENS)
    position = tl.load(seq_lens + row) - length + offset
    end_tile = tl.cdiv(position + tokens, TILE)
    first_tile = tl.zeros_like(end_tile)
    if window is not None:
        first_tile = tl.maximum(position - window + 1, 0) // TILE
    is_block = (index < num_blocks) & (tokens > 0) & (end_tile > 0)
    end_tile = tl.where(is_block, end_tile, first_tile)
    return row, start + offset, tokens, position, first_tile, end_tile


@triton.jit(do_not_specialize=["first_row", "num_rows", "num_blocks", "search_steps", "window"])
def schedule_items(
    query_start,
    seq_lens,
    items,
    merges,
    first_row,
    num_rows,
    num_blocks,
    search_steps,
    target_items,
    window,
    IS_DECODE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    TILE: tl.constexpr,
    MIN_TILES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Cut the Q blocks of some rows into items of about equal work, in one program.

    All tiles are shared out to target_items items, but an item has at least MIN_TILES (or all of its Q
    block). Then there are at most target_items + num_blocks items, at most target_items merges, and their
    partial results have at most 2 * target_items slots.

    query_start [R + 1] and seq_lens [R] are those of the step, whose num_rows rows from first_row on have at
    most num_blocks Q blocks; search_steps are the bits of num_rows. items and merges are zeros when called;
    window may be None.
    """
    query_start += first_row
    seq_lens += first_row
    lanes = tl.arange(0, CHUNK)
    num_tiles = 0
    for chunk in range(0, num_blocks, CHUNK):
        _, _, _, _, first, end = _q_blocks(
            query_start,
            seq_lens,
            chunk + lanes,
            num_rows,
            num_blocks,
            search_steps,
            window,
            IS_DECODE,
            BLOCK_TOKENS,
            TILE,
        )
        num_tiles += tl.sum(end - first)
    item_tiles = tl.maximum(tl.cdiv(num_tiles, target_items), MIN_TILES)

    num_items = 0
    num_slots = 0
    num_merges = 0
    for chunk in range(0, num_blocks, CHUNK):
        row, token, tokens, position, first, end = _q_blocks(
            query_start,
            seq_lens,
            chunk + lanes,
            num_rows,
            num_blocks,
            search_steps,
            window,
            IS_DECODE,
            BLOCK_TOKENS,
            TILE,
        )
        pieces = tl.cdiv(end - first, item_tiles)
        is_cut = pieces > 1
        partials = tl.where(is_cut, pieces, 0)
        item = items + (num_items + tl.cumsum(pieces) - pieces) * ITEM
        slot = num_slots + tl.cumsum(partials) - partials
        merge = merges + (num_merges + tl.cumsum(is_cut.to(tl.int32)) - 1) * MERGE
        tl.store(merge, pieces, mask=is_cut)
        tl.store(merge + 1, slot, mask=is_cut)
        tl.store(merge + 2, token, mask=is_cut)
        tl.store(merge + 3, tokens, mask=is_cut)
        for piece in range(0, tl.max(pieces)):
            inside = piece < pieces
            start = first + piece * item_tiles
            tl.store(item, tl.minimum(start + item_tiles, end), mask=inside)
            tl.store(item + 1, start, mask=inside)
            tl.store(item + 2, first_row + row, mask=inside)
            tl.store(item + 3, token, mask=inside)
            tl.store(item + 4, tokens, mask=inside)
            tl.store(item + 5, position, mask=inside)
            tl.store(item + 6, tl.where(is_cut, slot + piece, -1), mask=inside)
            item += ITEM
        num_items += tl.sum(pieces)
        num_slots += tl.sum(partials)
        num_merges += tl.sum(is_cut.to(tl.int32))
