"""Which tokens of a row top_k and top_p keep, for the Triton kernels of sampling.

The bits of -value order scaled logits, which are at most 0: a threshold is found digit by digit, three bits at a time,
by the weight of the tokens that share each digit.
"""

# Kernels are written in Triton's language, which mypy does not know.
# mypy: ignore-errors

import triton
import triton.language as tl

_LAST_KEY = tl.constexpr(0x7F800000)
"""Of -inf, which no token that may be drawn has."""


@triton.jit
def scaled(x, best, temperature, low):
    value = tl.div_rn(x - best, temperature)
    return tl.where(value < low, float("-inf"), value)


@triton.jit
def ordering_key(value):
    return value.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def load_values(logits, values, index, count, is_list, best, temperature, low):
    """Scaled logits of the list of candidates, or of the row itself where that is too short; -inf past the last."""
    inside = index < count
    listed = tl.load(values + index, mask=inside & is_list, other=float("-inf"))
    x = tl.load(logits + index, mask=inside & (is_list == 0), other=float("-inf")).to(tl.float32)
    return tl.where(is_list, listed, scaled(x, best, temperature, low))


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
            value = load_values(
                logits, values, start + tl.arange(0, BLOCK), count, is_list, best, temperature, low
            )
            key = ordering_key(value)
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
def kept_weights(value, limit, num_kept, num_before):
    """Weights, those after `limit` being 0 and so all but the first `num_kept` equal to it; and how many are equal."""
    key = ordering_key(value)
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
        value = load_values(logits, values, index, count, is_list, best, temperature, low)
        weight, more = kept_weights(value, limit, num_kept, num_ties)
        num_ties += more
        total += tl.sum(weight, axis=0)
    return total


@triton.jit
def filter_row(
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
