"""The Triton kernels of sampling: one program per row, nothing sorted, nothing read by the host.

The bits of -value order scaled logits, which are at most 0: a threshold is found digit by digit, three bits at a time,
by the weight of the tokens that share each digit. That is done over candidates, a short list as a rule: tokens above a
bound known before, from the largest logits of lanes (top_k) or from what tokens below it can weigh together (top_p).
"""

# mypy: ignore-errors

import triton
import triton.language as tl

_NO_TOKEN = tl.constexpr(-1)
_LAST_KEY = tl.constexpr(0x7F800000)
"""Of -inf, which no token that may be drawn has."""


@triton.jit
def _best_of(logits, size, BLOCK: tl.constexpr):
    """The largest logits of the lanes, that of the row, and its lowest index or _NO_TOKEN."""
    lane = tl.arange(0, BLOCK)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    places = tl.zeros([BLOCK], tl.int32)
    nans = tl.zeros([BLOCK], tl.int32)
    for start in range(0, size, BLOCK):
        index = start + lane
        x = tl.load(logits + index, mask=index < size, other=float("-inf")).to(tl.float32)
        places = tl.where(x > highest, index, places)
        highest = tl.where(x > highest, x, highest)
        nans = nans | (x != x).to(tl.int32)
    best = tl.max(highest, axis=0)
    first = tl.min(tl.where(highest == best, places, size), axis=0)
    is_finite = (tl.max(nans, axis=0) == 0) & (best < float("inf")) & (best > float("-inf"))
    return highest, best, tl.where(is_finite, first, _NO_TOKEN)


@triton.jit
def _scaled(x, best, temperature, low):
    value = tl.div_rn(x - best, temperature)
    return tl.where(value < low, float("-inf"), value)


@triton.jit
def _bound(min_p):
    return tl.where(min_p > 0.0, tl.log(tl.where(min_p > 0.0, min_p, 1.0)), float("-inf")).to(tl.float32)


@triton.jit
def _key(value):
    return value.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def greedy_rows(logits, token_ids, size, row_stride, BLOCK: tl.constexpr):
    """token_ids: [R]; logits: [R, size]."""
    row = tl.program_id(0).to(tl.int64)
    highest, best, first = _best_of(logits + row * row_stride, size, BLOCK)
    tl.store(token_ids + row, first.to(tl.int64))


@triton.jit
def penalise_rows(
    logits, row_stride, token_ids, counts, row_offsets, repetition, frequency, presence, BLOCK: tl.constexpr
):
    """The tokens of one row; see `quire.ops.sampling.apply_penalties`."""
    row = tl.program_id(0).to(tl.int64)
    first, last = tl.load(row_offsets + row), tl.load(row_offsets + row + 1)
    factor, per_count, once = tl.load(repetition + row), tl.load(frequency + row), tl.load(presence + row)
    for start in range(first, last, BLOCK):
        index = start + tl.arange(0, BLOCK)
        place = logits + row * row_stride + tl.load(token_ids + index, mask=index < last, other=0)
        count = tl.load(counts + index, mask=index < last, other=0)
        value = tl.load(place, mask=index < last, other=0.0)
        value = tl.where(value > 0.0, tl.div_rn(value, factor), value * factor)
        value = value - per_count * count.to(tl.float32) - tl.where(count > 0, once, 0.0)
        tl.store(place, value, mask=index < last)


@triton.jit
def gather_candidates(
    logits,
    temperatures,
    min_p,
    top_k,
    top_p,
    token_ids,
    bests,
    totals,
    num_candidates,
    values,
    places,
    size,
    row_stride,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each row's likeliest token, weight and candidates.

    token_ids, bests, totals, num_candidates: [R], the last 0 where no filter is set; values, places: [R, CAPACITY],
    the scaled logits and ids of candidates in the order of ids, where they are no more than that.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    highest, best, first = _best_of(logits, size, BLOCK)
    tl.store(token_ids + row, first.to(tl.int64))
    temperature = tl.load(temperatures + row).to(tl.float32)
    if (first >= 0) & (temperature > 0.0):
        low = _bound(tl.load(min_p + row))
        count_kept, share = tl.load(top_k + row), tl.load(top_p + row)
        has_top_k = (count_kept > 0) & (count_kept < size)
        is_filtered = has_top_k | (share < 1.0)
        least = low
        if has_top_k:
            if count_kept <= BLOCK:  # as many lanes, so at least as many tokens, reach what is found here
                keys, found = _key(_scaled(highest, best, temperature, low)), 0
                for step in range(31):
                    bit = 1 << (30 - step)
                    reached = tl.sum((keys < found + bit).to(tl.int32), axis=0)
                    found += tl.where(reached >= count_kept, 0, bit)
                least = -found.to(tl.float32, bitcast=True)
        elif share < 1.0:
            # A token below this weighs less than (1 - top_p) / size of the likeliest one alone.
            rest = tl.log(1.0 - share) - tl.log(size.to(tl.float64)) - 1.0
            least = tl.maximum(low, rest.to(tl.float32))
        weight = tl.zeros([BLOCK], tl.float64)
        count = 0
        for start in range(0, size, BLOCK):
            index = start + tl.arange(0, BLOCK)
            x = tl.load(logits + index, mask=index < size, other=float("-inf")).to(tl.float32)
            value = _scaled(x, best, temperature, low)
            weight += tl.exp(value).to(tl.float64)
            is_candidate = (is_filtered & (value >= least) & (value > float("-inf"))).to(tl.int32)
            more = tl.sum(is_candidate, axis=0)
            if (more > 0) & (count < CAPACITY):
                place = count + tl.cumsum(is_candidate, axis=0) - 1
                fits = (is_candidate > 0) & (place < CAPACITY)
                tl.store(values + row * CAPACITY + place, value, mask=fits)
                tl.store(places + row * CAPACITY + place, index, mask=fits)
            count += more
        tl.store(bests + row, best)
        tl.store(totals + row, tl.sum(weight, axis=0))
        tl.store(num_candidates + row, count)


@triton.jit
def _load_values(logits, values, index, count, is_list, best, temperature, low):
    """Scaled logits of the list of candidates, or of the row itself where that is too short; -inf past the last."""
    inside = index < count
    listed = tl.load(values + index, mask=inside & is_list, other=float("-inf"))
    x = tl.load(logits + index, mask=inside & (is_list == 0), other=float("-inf")).to(tl.float32)
    return tl.where(is_list, listed, _scaled(x, best, temperature, low))


@triton.jit
def _find_cut(
    logits,
    values,
    count,
    is_list,
    best,
    temperature,
    low,
    need,
    limit,
    limit_share,
    HAS_WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The key with which `need` is reached, what lies before it, and what it has itself.

    Keys after `limit` do not count, and those equal to it by `limit_share`.
    """
    digits = tl.arange(0, 8)
    cut = tl.full([], 0, tl.int32)
    before = tl.full([], 0.0, tl.float64)
    own = tl.full([], 0.0, tl.float64)
    for level in range(11):
        mass = tl.zeros([8, BLOCK], tl.float64)
        for start in range(0, count, BLOCK):
            value = _load_values(
                logits, values, start + tl.arange(0, BLOCK), count, is_list, best, temperature, low
            )
            key = _key(value)
            amount = tl.full([BLOCK], 1.0, tl.float64)
            if HAS_WEIGHTS:
                amount = tl.exp(value).to(tl.float64)
            amount = tl.where(key == limit, amount * limit_share, amount)
            digit = key >> (30 - 3 * level)
            counts = ((digit >> 3) == cut) & (key <= limit) & (value > float("-inf"))
            is_digit = (digit & 7)[None, :] == digits[:, None]
            mass += tl.where(is_digit & counts[None, :], amount[None, :], 0.0)
        sums = tl.sum(mass, axis=1)
        reached = (before + tl.cumsum(sums, axis=0) >= need) & (sums > 0.0)
        first = tl.min(tl.where(reached, digits, 8), axis=0)
        chosen = tl.minimum(first, tl.max(tl.where(sums > 0.0, digits, 0), axis=0))
        before += tl.sum(tl.where(digits < chosen, sums, 0.0), axis=0)
        own = tl.sum(tl.where(digits == chosen, sums, 0.0), axis=0)
        cut = cut * 8 + chosen
    return cut, before, own


@triton.jit
def _kept_weights(value, limit, num_kept, num_before):
    """Weights, those after `limit` being 0 and so all but the first `num_kept` equal to it; and how many are equal."""
    key = _key(value)
    is_tie = ((key == limit) & (value > float("-inf"))).to(tl.int32)
    num_ties = tl.sum(is_tie, axis=0)
    is_kept = key < limit
    if (num_ties > 0) & (num_kept > num_before):
        rank = num_before + tl.cumsum(is_tie, axis=0)
        is_kept = is_kept | ((is_tie > 0) & (rank <= num_kept))
    return tl.where(is_kept, tl.exp(value), 0.0).to(tl.float64), num_ties


@triton.jit
def _sum_kept(logits, values, count, is_list, best, temperature, low, limit, num_kept, BLOCK: tl.constexpr):
    total = tl.full([], 0.0, tl.float64)
    num_ties = tl.full([], 0, tl.int32)
    for start in range(0, count, BLOCK):
        index = start + tl.arange(0, BLOCK)
        value = _load_values(logits, values, index, count, is_list, best, temperature, low)
        weight, more = _kept_weights(value, limit, num_kept, num_ties)
        num_ties += more
        total += tl.sum(weight, axis=0)
    return total


@triton.jit
def _filter(
    logits,
    values,
    count,
    is_list,
    best,
    temperature,
    low,
    count_kept,
    share,
    total,
    size,
    BLOCK: tl.constexpr,
):
    """The key of the last tokens that top_k and top_p keep, how many of those stay, and the weight of all that stay."""
    has_top_k = (count_kept > 0) & (count_kept < size)
    limit = tl.full([], _LAST_KEY, tl.int32)
    limit_share = tl.full([], 1.0, tl.float64)
    num_kept = tl.full([], 0, tl.int32)
    if has_top_k:
        need = count_kept.to(tl.float64)
        limit, before, own = _find_cut(
            logits, values, count, is_list, best, temperature, low, need, limit, limit_share, False, BLOCK
        )
        kept = tl.minimum(need - before, own)
        num_kept, limit_share = kept.to(tl.int32), kept / own
    if has_top_k & (share < 1.0):
        total = _sum_kept(logits, values, count, is_list, best, temperature, low, limit, num_kept, BLOCK)
    if share < 1.0:
        need = share * total
        cut, before, own = _find_cut(
            logits, values, count, is_list, best, temperature, low, need, limit, limit_share, True, BLOCK
        )
        weight = tl.exp(-cut.to(tl.float32, bitcast=True)).to(tl.float64)
        most = tl.where(has_top_k & (cut == limit), num_kept, size).to(tl.float64)
        num_kept = tl.minimum(tl.maximum(tl.ceil((need - before) / weight), 1.0), most).to(tl.int32)
        limit = cut
    if has_top_k | (share < 1.0):
        total = _sum_kept(logits, values, count, is_list, best, temperature, low, limit, num_kept, BLOCK)
    return limit, num_kept, total


@triton.jit
def draw_tokens(
    logits,
    temperatures,
    min_p,
    top_k,
    top_p,
    draws,
    token_ids,
    bests,
    totals,
    num_candidates,
    values,
    places,
    size,
    row_stride,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Replace the likeliest token of rows with a temperature by a drawn one; see `gather_candidates`."""
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperatures + row).to(tl.float32)
    if (tl.load(token_ids + row) >= 0) & (temperature > 0.0):
        logits += row * row_stride
        values += row * CAPACITY
        low = _bound(tl.load(min_p + row))
        best, total = tl.load(bests + row), tl.load(totals + row)
        count_kept, share = tl.load(top_k + row), tl.load(top_p + row)
        listed = tl.load(num_candidates + row)
        is_list = (listed > 0) & (listed <= CAPACITY)
        count = tl.where(is_list, listed, size)
        limit, num_kept, total = _filter(
            logits, values, count, is_list, best, temperature, low, count_kept, share, total, size, BLOCK
        )
        goal = tl.load(draws + row) * total
        end = tl.full([], 0.0, tl.float64)
        num_ties = tl.full([], 0, tl.int32)
        chosen = tl.full([], -1, tl.int32)
        last = tl.full([], 0, tl.int32)
        for start in range(0, count, BLOCK):
            index = start + tl.arange(0, BLOCK)
            value = _load_values(logits, values, index, count, is_list, best, temperature, low)
            weight, more = _kept_weights(value, limit, num_kept, num_ties)
            num_ties += more
            here = tl.sum(weight, axis=0)
            last = tl.maximum(last, tl.max(tl.where(weight > 0.0, index, 0), axis=0))
            if (chosen < 0) & (end + here > goal):
                is_past = (end + tl.cumsum(weight, axis=0) > goal) & (weight > 0.0)
                first = tl.min(tl.where(is_past, index, count), axis=0)
                chosen = tl.where(first < count, first, last)  # sums in another order may fall short
            end += here
        chosen = tl.where(chosen < 0, last, chosen)
        found = tl.load(places + row * CAPACITY + chosen, mask=is_list, other=0)
        tl.store(token_ids + row, tl.where(is_list, found, chosen).to(tl.int64))
