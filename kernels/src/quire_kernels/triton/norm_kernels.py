"""What the Triton kernels of the norms share."""

# Kernels are written in Triton's language, which mypy does not know.
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def stream_values(x, residual, column, mask):
    """What is normed, in float32: values of x, or their sums with the residual's, rounded to x's type."""
    value = tl.load(x + column, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        value += tl.load(residual + column, mask=mask, other=0.0).to(tl.float32)
        value = value.to(x.dtype.element_ty).to(tl.float32)
    return value
