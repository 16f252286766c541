"""The Triton kernel of `embedding`."""

# Kernels are written in Triton's language, which mypy does not know.
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["table_rows"])
def take_rows(index, table, out, index_stride, table_rows, row_stride, size, BLOCK: tl.constexpr):
    """Copy BLOCK values of a row of the table, [table_rows, size], to out, contiguous; NaN for no such row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    source = tl.load(index + row * index_stride).to(tl.int64)
    is_there, inside = (source >= 0) & (source < table_rows), column < size
    values = tl.load(table + source * row_stride + column, mask=inside & is_there, other=0.0)
    nothing = tl.full([BLOCK], float("nan"), tl.float32).to(out.dtype.element_ty)
    tl.store(out + row * size + column, tl.where(is_there, values, nothing), mask=inside)
