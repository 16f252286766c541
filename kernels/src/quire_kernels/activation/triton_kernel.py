"""The Triton kernel of all activations, with and without a gate."""

# Kernels are written in Triton's language, which mypy does not know.
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    """Of float32. The tanh approximation is written as a sigmoid, (1 + tanh(y)) / 2 being sigmoid(2 y)."""
    if ACTIVATION == "silu":
        result = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        result = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))  # sqrt(1 / 2)
    elif ACTIVATION == "gelu_tanh":
        y = 0.7978845608028654 * (x + 0.044715 * x * x * x)  # sqrt(2 / pi)
        result = x / (1.0 + tl.exp(-2.0 * y))
    else:
        tl.static_assert(ACTIVATION == "relu")
        result = tl.where(x < 0.0, 0.0, x)  # NaN stays
    return result


@triton.jit
def activate_rows(
    x,
    out,
    size,
    inner_rows,
    outer_stride,
    inner_stride,
    ACTIVATION: tl.constexpr,
    IS_GATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one row: out, contiguous, is [A, inner_rows, size]; so is x, with two strides.

    IS_GATED: rows of x are 2 * size long, and the activated first half, rounded, is multiplied by the second.
    """
    blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    x += row // inner_rows * outer_stride + row % inner_rows * inner_stride + column
    result = _activated(tl.load(x, mask=inside, other=0.0).to(tl.float32), ACTIVATION)
    if IS_GATED:
        up = tl.load(x + size, mask=inside, other=0.0).to(tl.float32)
        result = result.to(out.dtype.element_ty).to(tl.float32) * up
    tl.store(out + row * size + column, result.to(out.dtype.element_ty), mask=inside)
