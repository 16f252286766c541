"""The Triton kernel that writes keys and values to a paged KV cache, and rotates them and the queries on the way.

The conversions from and to e4m3 are of integers and halves: equal on all devices, whether they have the type or not.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

NONE = tl.constexpr(0)
INT8 = tl.constexpr(1)
E4M3 = tl.constexpr(2)
"""How elements are kept: in the model's dtype, or with a scale per head."""
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds to an integer, ties to even
_LEAST_SCALE = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def _to_e4m3(x):
    """The bits of float32 values of at most 448, rounded to the nearest, ties to even."""
    bits = x.to(tl.int32, bitcast=True)
    sign = (bits >> 24) & 0x80
    bits = bits & 0x7FFFFFFF
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    small = (tl.abs(x) * 512.0 + _ROUND - _ROUND).to(tl.int32)  # below 2^-6 they are multiples of 2^-9
    return (tl.where(bits < (121 << 23), small, normal) | sign).to(tl.uint8)


@triton.jit
def widened(elements, dtype: tl.constexpr, KIND: tl.constexpr):
    """Elements of a cache, uint8, in a float dtype, which holds them exactly; those of e4m3 over 256."""
    if KIND == INT8:
        wide = elements.to(tl.int8, bitcast=True).to(tl.float32)
    else:
        bits = elements.to(tl.int16)
        wide = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True).to(tl.float32)
    return wide.to(dtype)


@triton.jit
def scale_factor(KIND: tl.constexpr):
    """What scales are multiplied by for elements that `widened` gave."""
    return 256.0 if KIND == E4M3 else 1.0


@triton.jit
def _rotated(
    own,
    start,
    dim,
    inside,
    cos,
    sin,
    pairs,
    INTERLEAVED: tl.constexpr,
):
    """Heads of a token, [heads, dims], rotated; each product is rounded. `start` points to their first dimensions."""
    if INTERLEAVED:
        pair = dim // 2
        partner = dim ^ 1
        is_first = dim % 2 == 0
    else:
        is_first = dim < pairs
        pair = tl.where(is_first, dim, dim - pairs)
        partner = tl.where(is_first, dim + pairs, dim - pairs)
    is_rotated = dim < 2 * pairs
    other = tl.load(start + partner[None, :], mask=inside & is_rotated[None, :], other=0.0)
    cos = tl.load(cos + pair, mask=is_rotated, other=0.0).to(tl.float32)
    sin = tl.load(sin + pair, mask=is_rotated, other=0.0).to(tl.float32)
    sin = tl.where(is_first, -sin, sin)
    by_cos = (own.to(tl.float32) * cos[None, :]).to(own.dtype).to(tl.float32)
    by_sin = (other.to(tl.float32) * sin[None, :]).to(own.dtype).to(tl.float32)
    return tl.where(is_rotated[None, :], (by_cos + by_sin).to(own.dtype), own)


@triton.jit
def _put(x, elements, scales, head, dim, is_head, inside, PITCH: tl.constexpr, KIND: tl.constexpr):
    """Store heads [heads, dims] of a token, `elements` and `scales` being its first ones."""
    target = elements + head[:, None] * PITCH + dim[None, :]
    if KIND == NONE:
        tl.store(target, x, mask=inside)
    else:
        x = x.to(tl.float32)
        top: tl.constexpr = 448.0 if KIND == E4M3 else 127.0
        most = tl.max(tl.abs(x), 1)
        scale = tl.maximum(tl.div_rn(most, tl.full(most.shape, top, tl.float32)), _LEAST_SCALE)
        is_sick = tl.max((x != x).to(tl.int32), 1) > 0
        tl.store(scales + head, tl.where(is_sick, float("nan"), scale), mask=is_head)
        x = tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape))
        x = tl.minimum(tl.maximum(x, -top), top)
        if KIND == INT8:
            kept = (x + _ROUND - _ROUND).to(tl.int32).to(tl.int8).to(tl.uint8, bitcast=True)
        else:
            kept = _to_e4m3(x)
        tl.store(target, kept, mask=inside)


@triton.jit
def write_kv(
    query,
    rotated,
    key,
    value,
    kv_cache,
    kv_scales,
    slot_mapping,
    cos,
    sin,
    query_stride,
    query_head_stride,
    key_stride,
    key_head_stride,
    value_stride,
    value_head_stride,
    pairs,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD_LANES: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PITCH: tl.constexpr,
    TOKEN: tl.constexpr,
    KIND: tl.constexpr,
):
    """One token's block of heads: of queries, rotated to another tensor, or of keys and values to the token's slot.

    query, key and value are [T, heads, D] by two strides, rotated is [T, H, D], cos and sin are contiguous, or None:
    then nothing is rotated, and there are no blocks of queries. A head has PITCH elements in the cache, a token has
    TOKEN elements with its scales, float32, which kv_scales points to as to the cache's beginning. A slot of -1 is
    skipped.
    """
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    dim = tl.arange(0, HEAD_LANES)
    if cos is not None:
        cos += token * pairs
        sin += token * pairs
        key_blocks: tl.constexpr = (NUM_KV_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
        if block >= key_blocks:
            head = (block - key_blocks) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
            inside = (head < NUM_HEADS)[:, None] & (dim < HEAD_SIZE)[None, :]
            start = query + token * query_stride + head.to(tl.int64)[:, None] * query_head_stride
            x = tl.load(start + dim[None, :], mask=inside, other=0.0)
            x = _rotated(x, start, dim, inside, cos, sin, pairs, INTERLEAVED)
            rotated += token * (NUM_HEADS * HEAD_SIZE)
            tl.store(rotated + head[:, None] * HEAD_SIZE + dim[None, :], x, mask=inside)
            return
    slot = tl.load(slot_mapping + token).to(tl.int64)
    if slot < 0:
        return
    head = block * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    is_head = head < NUM_KV_HEADS
    inside = is_head[:, None] & (dim < HEAD_SIZE)[None, :]
    elements = kv_cache + slot * TOKEN
    if KIND != NONE:
        kv_scales += slot * (TOKEN // 4) + 2 * NUM_KV_HEADS * (PITCH // 4)
    start = key + token * key_stride + head.to(tl.int64)[:, None] * key_head_stride
    x = tl.load(start + dim[None, :], mask=inside, other=0.0)
    if cos is not None:
        x = _rotated(x, start, dim, inside, cos, sin, pairs, INTERLEAVED)
    _put(x, elements, kv_scales, head, dim, is_head, inside, PITCH, KIND)
    start = value + token * value_stride + head.to(tl.int64)[:, None] * value_head_stride
    x = tl.load(start + dim[None, :], mask=inside, other=0.0)
    elements += NUM_KV_HEADS * PITCH
    if KIND != NONE:
        kv_scales += NUM_KV_HEADS
    _put(x, elements, kv_scales, head, dim, is_head, inside, PITCH, KIND)
