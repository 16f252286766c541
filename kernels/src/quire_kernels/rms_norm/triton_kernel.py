"""The Triton kernel of `rms_norm`."""

# Kernels are written in Triton's language, which mypy does not know.
# mypy: ignore-errors

import triton
import triton.language as tl

from quire_kernels.triton.norm_kernels import stream_values


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_rows(
    x,
    residual,
    weight,
    total,
    out,
    num_rows,
    size,
    inner_rows,
    outer_stride,
    inner_stride,
    residual_outer_stride,
    residual_inner_stride,
    eps,
    BLOCKS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Norm BLOCK_ROWS rows of x, [A, inner_rows, size] with two strides, into out, contiguous.

    With a residual (with strides of its own) the sum of both is normed, and written to total, contiguous; else both
    are None.
    A row is BLOCKS blocks. Of a single one the compiler keeps the values that it loaded first.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = (row < num_rows)[:, None]
    outer, inner = row // inner_rows, row % inner_rows
    x += (outer * outer_stride + inner * inner_stride)[:, None]
    out += (row * size)[:, None]
    if residual is not None:
        residual += (outer * residual_outer_stride + inner * residual_inner_stride)[:, None]
        total += (row * size)[:, None]

    squares = tl.zeros([BLOCK_ROWS, BLOCK], tl.float32)
    for block in tl.static_range(BLOCKS):
        column = block * BLOCK + tl.arange(0, BLOCK)[None, :]
        value = stream_values(x, residual, column, is_row & (column < size))
        squares += value * value
    inverse = tl.rsqrt(tl.sum(squares, axis=1, keep_dims=True) / size + eps)

    for block in tl.static_range(BLOCKS):
        column = block * BLOCK + tl.arange(0, BLOCK)[None, :]
        inside = is_row & (column < size)
        value = stream_values(x, residual, column, inside)
        if residual is not None:
            tl.store(total + column, value.to(total.dtype.element_ty), mask=inside)
        factor = tl.load(weight + column, mask=column < size, other=0.0).to(tl.float32)
        normed = (value * inverse).to(out.dtype.element_ty).to(tl.float32)  # rounded, as the reference does
        tl.store(out + column, (normed * factor).to(out.dtype.element_ty), mask=inside)
