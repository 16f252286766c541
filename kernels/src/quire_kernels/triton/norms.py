"""What the Triton norms share: how many rows a program takes, and the launch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from quire_kernels.triton.launch import as_rows, check_dtype, on_device_of

_LEAST_BLOCK, _LARGEST_BLOCK = 1024, 16384
"""Values of a program at a time: 8 to 32 a thread, which stay in registers."""


def normed_rows(
    kernel: Any,
    x: Tensor,
    parameters: tuple[Tensor | None, ...],
    eps: float,
    residual: Tensor | None = None,
    total: Tensor | None = None,
) -> Tensor:
    """A new tensor like x, each of its rows, or of its sum with the residual, normed by a kernel.

    Args:
        kernel: takes x, the residual, the parameters, total, out and what follows below.
        x: [..., E], bfloat16, float16 or float32.
        parameters: [E] each, or None.
        eps: as the ops take it.
        residual: x's shape and dtype, or None.
        total: contiguous, for the sum; None where there is no residual.

    Raises:
        TypeError: another dtype.
    """
    check_dtype(x)
    out = x.new_empty(x.shape)
    if x.numel() == 0:
        return out
    rows, others = as_rows(x), None if residual is None else as_rows(residual)
    num_rows, size = rows.shape[0] * rows.shape[1], rows.shape[2]
    block = min(1 << (size - 1).bit_length(), _LARGEST_BLOCK)
    block_rows = max(1, _LEAST_BLOCK // block)
    with on_device_of(x):
        kernel[(-(-num_rows // block_rows),)](
            rows,
            others,
            *(None if parameter is None else parameter.contiguous() for parameter in parameters),
            total,
            out,
            num_rows,
            size,
            rows.shape[1],
            rows.stride(0),
            rows.stride(1),
            *((0, 0) if others is None else others.stride()[:2]),
            eps,
            BLOCKS=-(-size // block),
            BLOCK_ROWS=block_rows,
            BLOCK=block,
            num_warps=min(max(4, block // 512), 16),
        )
    return out
