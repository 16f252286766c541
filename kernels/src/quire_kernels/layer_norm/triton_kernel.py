"""The Triton kernel of `layer_norm`."""

# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])
def layer_norm_rows(
    x,
    weight,
    bias,
    out,
    num_rows,
    size,
    inner_rows,
    outer_stride,
    inner_stride,
    eps,
    BLOCKS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Norm BLOCK_ROWS rows of x, [A, inner_rows, size] with two strides, into out, contiguous.

    The variance is that of the centred values: squares of a large mean would swallow it. bias may be None.
    A row is BLOCKS blocks. Of a single one the compiler keeps the values that it loaded first.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = (row < num_rows)[:, None]
    x += (row // inner_rows * outer_stride + row % inner_rows * inner_stride)[:, None]
    out += (row * size)[:, None]

    values = tl.zeros([BLOCK_ROWS, BLOCK], tl.float32)
    for block in tl.static_range(BLOCKS):
        column = block * BLOCK + tl.arange(0, BLOCK)[None, :]
        values += tl.load(x + column, mask=is_row & (column < size), other=0.0).to(tl.float32)
    mean = tl.sum(values, axis=1, keep_dims=True) / size

    squares = tl.zeros([BLOCK_ROWS, BLOCK], tl.float32)
    for block in tl.static_range(BLOCKS):
        column = block * BLOCK + tl.arange(0, BLOCK)[None, :]
        inside = is_row & (column < size)
        centred = tl.load(x + column, mask=inside, other=0.0).to(tl.float32) - mean
        squares += tl.where(inside, centred * centred, 0.0)
    inverse = tl.rsqrt(tl.sum(squares, axis=1, keep_dims=True) / size + eps)

    for block in tl.static_range(BLOCKS):
        column = block * BLOCK + tl.arange(0, BLOCK)[None, :]
        inside = is_row & (column < size)
        centred = tl.load(x + column, mask=inside, other=0.0).to(tl.float32) - mean
        result = centred * inverse * tl.load(weight + column, mask=column < size, other=0.0).to(tl.float32)
        if bias is not None:
            result += tl.load(bias + column, mask=column < size, other=0.0).to(tl.float32)
        tl.store(out + column, result.to(out.dtype.element_ty), mask=inside)
