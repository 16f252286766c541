"""Triton kernels of paged attention: attending by the items of a schedule, and merging their results.

Scores are in bits: scales, slopes and caps come multiplied by log2(e), and weights are powers of 2.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from quire_kernels.kv_write.triton_kernel import INT8, NONE, scale_factor, widened
from quire_kernels.paged_attention.triton_schedule import ITEM, MERGE


@triton.jit
def _read_item(item):
    """First tile, row, first token, tokens, first position and slot of an item."""
    row = tl.load(item + 2).to(tl.int64)
    token = tl.load(item + 3).to(tl.int64)
    return tl.load(item + 1), row, token, tl.load(item + 4), tl.load(item + 5), tl.load(item + 6).to(tl.int64)


@triton.jit
def _look_up(block_table, key_position, oldest, end, BLOCK_SIZE: tl.constexpr):
    """Whether positions are of a context's part from oldest to end, and their blocks.

    Others' blocks may be another request's by now, or not written yet.
    """
    is_known = (key_position >= oldest) & (key_position < end)
    return is_known, tl.load(block_table + key_position // BLOCK_SIZE, mask=is_known, other=0)


@triton.jit
def _load_scales(scales, is_known, KIND: tl.constexpr):
    """Of elements as `widened` gives them, a tile's; 0 for others' slots."""
    return tl.load(scales, mask=is_known, other=0.0) * scale_factor(KIND)


@triton.jit
def _store_stats(stats, highest, total, is_row):
    """Of a partial result's rows: the highest score, and the sum of weights."""
    tl.store(stats, highest, mask=is_row)
    tl.store(stats + 1, total, mask=is_row)


@triton.jit
def _masked_scores(scores, query_position, key_position, slope, window, logit_cap):
    """Scores [rows, tile] as the softmax takes them: capped, biased, and -inf where a query does not see."""
    if logit_cap is not None:  # cap * tanh(score / cap); the factor is 2 * log2(e)
        scores = logit_cap - 2.0 * logit_cap / (1.0 + tl.exp2(scores * (2.8853900817779268 / logit_cap)))
    distance = key_position[None, :] - query_position[:, None]
    if slope is not None:
        scores += slope[:, None] * distance
    is_visible = distance <= 0
    if window is not None:
        is_visible &= distance > -window
    return tl.where(is_visible, scores, float("-inf"))


@triton.jit(do_not_specialize=["window"])
def attend(  # noqa: PLR0915  # a kernel: its parts share too many values to be functions
    query,
    kv_cache,
    kv_scales,
    block_tables,
    items,
    slopes,
    out,
    partial_sums,
    partial_stats,
    query_stride,
    query_head_stride,
    table_stride,
    scale,
    window,
    logit_cap,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD_LANES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PITCH: tl.constexpr,
    TOKEN: tl.constexpr,
    KIND: tl.constexpr,
):
    """One item of one KV head: online softmax over tiles of a context that is read where it lies.

    query is [T, H, D] by two strides, out [T, H, D], kv_cache [blocks, BLOCK_SIZE, TOKEN]: keys, values and,
    by kv_scales, scales, see `write_kv`. Keys' scales multiply scores, those of values weights. Partial results
    are [slots, BLOCK_TOKENS, H, D], not yet divided, and of each the highest score and the sum of weights.
    slopes [H], window and logit_cap may be None. HEAD_LANES is HEAD_SIZE as a power of 2.
    """
    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP
    ZERO: tl.constexpr = 0.0 if KIND == NONE else 0
    WIDTH: tl.constexpr = NUM_KV_HEADS * PITCH
    RAISED: tl.constexpr = 64.0 if KIND == INT8 else 1.0  # float16 has few digits for scales of small values
    program = tl.num_programs(0) - 1 - tl.program_id(0)  # the last items of a prompt are its longest
    kv_head = program % NUM_KV_HEADS
    item = items + program // NUM_KV_HEADS * ITEM
    end_tile = tl.load(item)
    if end_tile == 0:
        return
    first_tile, row, token, num_tokens, position, slot = _read_item(item)

    lane = tl.arange(0, BLOCK_ROWS)
    index = lane // GROUP
    head = kv_head * GROUP + lane % GROUP
    dim = tl.arange(0, HEAD_LANES)
    is_row = index < num_tokens
    is_dim = dim < HEAD_SIZE
    mask = is_row[:, None] & is_dim[None, :]
    source = (token + index) * query_stride + head * query_head_stride
    rows = tl.load(query + source[:, None] + dim[None, :], mask=mask, other=0.0)
    slope = None if slopes is None else tl.load(slopes + head, mask=is_row, other=0.0)
    oldest = 0 if window is None else tl.maximum(position - window + 1, 0)
    kv_cache += kv_head * PITCH
    if KIND != NONE:
        kv_scales += 2 * NUM_KV_HEADS * (PITCH // 4) + kv_head
    block_tables += row * table_stride

    highest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    sums = tl.zeros([BLOCK_ROWS, HEAD_LANES], tl.float32)
    key_position = first_tile * TILE + tl.arange(0, TILE)
    is_known, block = _look_up(block_tables, key_position, oldest, position + num_tokens, BLOCK_SIZE)
    for _ in range(first_tile, end_tile):
        key_slot = block.to(tl.int64) * BLOCK_SIZE + key_position % BLOCK_SIZE
        start = key_slot * TOKEN
        keys = tl.load(
            kv_cache + start[None, :] + dim[:, None], mask=is_known[None, :] & is_dim[:, None], other=ZERO
        )
        values = tl.load(
            kv_cache + WIDTH + start[:, None] + dim[None, :],
            mask=is_known[:, None] & is_dim[None, :],
            other=ZERO,
        )
        if KIND == NONE:
            scores = tl.dot(rows, keys, input_precision="ieee") * scale
        else:
            scales = kv_scales + key_slot * (TOKEN // 4)
            scores = tl.dot(rows, widened(keys, rows.dtype, KIND), input_precision="ieee") * scale
            scores *= _load_scales(scales, is_known, KIND)[None, :]
        scores = _masked_scores(scores, position + index, key_position, slope, window, logit_cap)
        previous = highest
        highest = tl.maximum(highest, tl.max(scores, 1))
        shift = tl.where(highest == float("-inf"), 0.0, highest)  # a row that sees nothing yet
        weights = tl.exp2(scores - shift[:, None])
        decay = tl.exp2(previous - shift)
        total = total * decay + tl.sum(weights, 1)
        if KIND != NONE:
            weights *= (_load_scales(scales + NUM_KV_HEADS, is_known, KIND) * RAISED)[None, :]
            values = widened(values, rows.dtype, KIND)  # not before: it takes many registers
        sums = tl.dot(weights.to(values.dtype), values, sums * decay[:, None], input_precision="ieee")
        key_position += TILE  # the next tile's blocks: read ahead, else its loads wait for them
        is_known, block = _look_up(block_tables, key_position, oldest, position + num_tokens, BLOCK_SIZE)

    total *= RAISED
    if slot < 0:
        target = (token + index) * NUM_HEADS + head
        result = (sums / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + target[:, None] * HEAD_SIZE + dim[None, :], result, mask=mask)
    else:
        target = (slot * BLOCK_TOKENS + index) * NUM_HEADS + head
        tl.store(partial_sums + target[:, None] * HEAD_SIZE + dim[None, :], sums, mask=mask)
        _store_stats(partial_stats + target * 2, highest, total, is_row)


@triton.jit
def merge_partials(
    partial_sums,
    partial_stats,
    merges,
    out,
    NUM_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD_LANES: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """One head of one token of a merge: the partial results of `attend`, SLOTS at a time, in order, to out."""
    head = tl.program_id(0) % NUM_HEADS
    index = tl.program_id(0) // NUM_HEADS % BLOCK_TOKENS
    merge = merges + tl.program_id(0) // (NUM_HEADS * BLOCK_TOKENS) * MERGE
    count = tl.load(merge)
    if count == 0:
        return
    if index >= tl.load(merge + 3):
        return
    first_slot = tl.load(merge + 1).to(tl.int64)
    token = tl.load(merge + 2).to(tl.int64) + index
    dim = tl.arange(0, HEAD_LANES)
    is_dim = dim < HEAD_SIZE

    highest = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    sums = tl.zeros([HEAD_LANES], tl.float32)
    for start in range(0, count, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        inside = slot < count
        place = ((first_slot + slot) * BLOCK_TOKENS + index) * NUM_HEADS + head
        highs = tl.load(partial_stats + place * 2, mask=inside, other=float("-inf"))
        totals = tl.load(partial_stats + place * 2 + 1, mask=inside, other=0.0)
        parts = tl.load(
            partial_sums + place[:, None] * HEAD_SIZE + dim[None, :],
            mask=inside[:, None] & is_dim[None, :],
            other=0.0,
        )
        previous = highest
        highest = tl.maximum(highest, tl.max(highs, 0))
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        weights = tl.exp2(highs - shift)
        decay = tl.exp2(previous - shift)
        total = total * decay + tl.sum(totals * weights, 0)
        sums = sums * decay + tl.sum(parts * weights[:, None], 0)
    place = (token * NUM_HEADS + head) * HEAD_SIZE + dim
    tl.store(out + place, (sums / total).to(out.dtype.element_ty), mask=is_dim)
