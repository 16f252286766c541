"""The Triton kernel of `copy_blocks`."""

# Kernels are written in Triton's language, which mypy does not know.
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_blocks"])
def copy_words(
    cache,
    sources,
    destinations,
    source_stride,
    destination_stride,
    num_blocks,
    block_words,
    BLOCK: tl.constexpr,
):
    """Copy BLOCK words of one pair's block, of the cache [num_blocks, block_words]; nothing where an id is wrong."""
    pair = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    source = tl.load(sources + pair * source_stride).to(tl.int64)
    destination = tl.load(destinations + pair * destination_stride).to(tl.int64)
    is_inside = (source >= 0) & (source < num_blocks) & (destination >= 0) & (destination < num_blocks)
    mask = is_inside & (word < block_words)
    tl.store(
        cache + destination * block_words + word,
        tl.load(cache + source * block_words + word, mask=mask),
        mask=mask,
    )
