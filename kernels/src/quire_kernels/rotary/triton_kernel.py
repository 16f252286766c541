"""The Triton kernel of `rotary`."""

# Kernels are written in Triton's language, which mypy does not know.
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def _turned(a, b, cos, sin):
    """Pairs (a cos - b sin, b cos + a sin), each product rounded to a's dtype, as the reference does."""
    dtype = a.dtype
    a, b = a.to(tl.float32), b.to(tl.float32)
    first = (a * cos).to(dtype).to(tl.float32) - (b * sin).to(dtype).to(tl.float32)
    second = (b * cos).to(dtype).to(tl.float32) + (a * sin).to(dtype).to(tl.float32)
    return first.to(dtype), second.to(dtype)


@triton.jit
def _rotate(
    x,
    block,
    num_heads,
    head_stride,
    cos,
    sin,
    pairs,
    INTERLEAVED: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
):
    """One block of the heads of one token, in place; cos and sin are float32 [1, BLOCK_PAIRS]."""
    head = block * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    is_head = (head < num_heads)[:, None]
    x += (head.to(tl.int64) * head_stride)[:, None]
    if INTERLEAVED:
        feature = tl.arange(0, 2 * BLOCK_PAIRS)[None, :]
        inside = is_head & (feature < 2 * pairs)
        values = tl.load(x + feature, mask=inside, other=0.0)
        a, b = tl.split(tl.reshape(values, [BLOCK_HEADS, BLOCK_PAIRS, 2]))
        first, second = _turned(a, b, cos, sin)
        values = tl.reshape(tl.join(first, second), [BLOCK_HEADS, 2 * BLOCK_PAIRS])
        tl.store(x + feature, values, mask=inside)
    else:
        pair = tl.arange(0, BLOCK_PAIRS)[None, :]
        inside = is_head & (pair < pairs)
        a = tl.load(x + pair, mask=inside, other=0.0)
        b = tl.load(x + pairs + pair, mask=inside, other=0.0)
        first, second = _turned(a, b, cos, sin)
        tl.store(x + pair, first, mask=inside)
        tl.store(x + pairs + pair, second, mask=inside)


@triton.jit
def rotate_heads(
    query,
    key,
    cos,
    sin,
    query_heads,
    key_heads,
    query_stride,
    query_head_stride,
    key_stride,
    key_head_stride,
    pairs,
    INTERLEAVED: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
):
    """A program per token and block of its heads: those of query first, then key's. cos, sin: contiguous."""
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    pair = tl.arange(0, BLOCK_PAIRS)
    cos = tl.load(cos + token * pairs + pair, mask=pair < pairs, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin + token * pairs + pair, mask=pair < pairs, other=0.0).to(tl.float32)[None, :]
    query_blocks = tl.cdiv(query_heads, BLOCK_HEADS)
    if block < query_blocks:
        query += token * query_stride
        _rotate(
            query,
            block,
            query_heads,
            query_head_stride,
            cos,
            sin,
            pairs,
            INTERLEAVED,
            BLOCK_HEADS,
            BLOCK_PAIRS,
        )
    else:
        key += token * key_stride
        block -= query_blocks
        _rotate(
            key, block, key_heads, key_head_stride, cos, sin, pairs, INTERLEAVED, BLOCK_HEADS, BLOCK_PAIRS
        )
