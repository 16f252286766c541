"""The Triton kernels of sampling: one program per row, nothing sorted, nothing read by the host.

Thresholds are found over candidates, a short list as a rule: tokens above a bound known before, from the largest logits
of lanes (top_k) or from what tokens below it can weigh together (top_p). See triton_filter.py.
"""

# Kernels are written in Triton's language, which mypy does not know.
# mypy: ignore-errors

import triton
import triton.language as tl

from quire_kernels.sampling.triton_filter import filter_row, kept_weights, load_values, ordering_key, scaled

_NO_TOKEN = tl.constexpr(-1)


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
def _bound(min_p):
    return tl.where(min_p > 0.0, tl.log(tl.where(min_p > 0.0, min_p, 1.0)), float("-inf")).to(tl.float32)


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
                keys, found = ordering_key(scaled(highest, best, temperature, low)), 0
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
            value = scaled(x, best, temperature, low)
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
        limit, num_kept, total = filter_row(
            logits, values, count, is_list, best, temperature, low, count_kept, share, total, size, BLOCK
        )
        goal = tl.load(draws + row) * total
        end = tl.full([], 0.0, tl.float64)
        num_ties = tl.full([], 0, tl.int32)
        chosen = tl.full([], -1, tl.int32)
        last = tl.full([], 0, tl.int32)
        for start in range(0, count, BLOCK):
            index = start + tl.arange(0, BLOCK)
            value = load_values(logits, values, index, count, is_list, best, temperature, low)
            weight, more = kept_weights(value, limit, num_kept, num_ties)
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
