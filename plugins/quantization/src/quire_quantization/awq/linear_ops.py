"""References of the ops over AWQ's layouts: exact integers, products in float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor

from quire_quantization.awq.packing import (
    FAST_ROWS,
    PER_WORD,
    unpack_fields,
    unpack_gemm,
    unpack_gemv_fast,
)
from quire_quantization.chunked import multiply_in_chunks, wide_dtype

_MIDDLE = 8
"""The zero point where none is stored."""


def awq_linear(
    x: Tensor,
    qweight: Tensor,
    qzeros: Tensor | None,
    scales: Tensor,
    bias: Tensor | None,
    group_size: int,
    input_start: int,
) -> Tensor:
    """A linear layer with weights in AWQ's gemm layout: y = x @ ((q - zero) * scale) + bias.

    Args:
        x: [T, K], any floating dtype.
        qweight: int32 [K, N / 8], eight outputs in a word.
        qzeros: int32 [G, N / 8], likewise; None: 8 throughout.
        scales: [G, N], float16, bfloat16 or float32.
        bias: [N] in x's dtype, or None.
        group_size: inputs that share a scale.
        input_start: input k is of group (input_start + k) // group_size.

    Returns:
        [T, N], x's dtype, a new tensor.

    Source: Lin et al. 2023 (AWQ); the layout is that of WQLinear_GEMM, AutoAWQ 0.2.9.
    """
    wide = wide_dtype(x)
    groups = _groups(x, group_size, input_start)

    def weights(rows: slice) -> Tensor:
        words = slice(rows.start // PER_WORD, rows.stop // PER_WORD)
        zeros = _MIDDLE if qzeros is None else unpack_gemm(qzeros[:, words]).to(wide)[groups]
        return ((unpack_gemm(qweight[:, words]).to(wide) - zeros) * scales[:, rows].to(wide)[groups]).t()

    return multiply_in_chunks(x, weights, scales.shape[1], bias, unit=PER_WORD)


def awq_gemv_linear(
    x: Tensor,
    qweight: Tensor,
    qzeros: Tensor | None,
    scales: Tensor,
    bias: Tensor | None,
    group_size: int,
    input_start: int,
) -> Tensor:
    """The same in AWQ's gemv layout.

    Args:
        x: [T, K], any floating dtype.
        qweight: int32 [N, K / 8], eight inputs in a word, lowest bits first.
        qzeros: int32 [N, W], eight groups in a word, likewise; None: 8 throughout.
        scales: [N, W * 8]; what is beyond the groups is padding.
        bias: [N] in x's dtype, or None.
        group_size: inputs that share a scale.
        input_start: input k is of group (input_start + k) // group_size.

    Returns:
        [T, N], x's dtype, a new tensor.

    Source: Lin et al. 2023 (AWQ); the layout is that of WQLinear_GEMV, AutoAWQ 0.2.9.
    """
    wide = wide_dtype(x)
    groups = _groups(x, group_size, input_start)

    def weights(rows: slice) -> Tensor:
        zeros = _MIDDLE if qzeros is None else unpack_fields(qzeros[rows]).to(wide)[:, groups]
        return (unpack_fields(qweight[rows]).to(wide) - zeros) * scales[rows].to(wide)[:, groups]

    return multiply_in_chunks(x, weights, scales.shape[0], bias)


def awq_gemv_fast_linear(
    x: Tensor,
    qweight: Tensor,
    scaled_zeros: Tensor | None,
    scales: Tensor,
    bias: Tensor | None,
    group_size: int,
    input_start: int,
) -> Tensor:
    """The same in AWQ's gemv_fast layout, which adds products of zero points: y = x @ (q * scale + scaled_zero).T.

    Args:
        x: [T, K], any floating dtype.
        qweight: int16 [N / 4, K], see `unpack_gemv_fast`.
        scaled_zeros: [W * 8, N], -zero * scale as it was rounded to the scales' dtype; None: zero is 8.
        scales: [W * 8, N]; what is beyond the groups is padding.
        bias: [N] in x's dtype, or None.
        group_size: inputs that share a scale.
        input_start: input k is of group (input_start + k) // group_size.

    Returns:
        [T, N], x's dtype, a new tensor.

    Source: Lin et al. 2023 (AWQ); the layout is that of WQLinear_GEMVFast, AutoAWQ 0.2.9.
    """
    wide = wide_dtype(x)
    groups = _groups(x, group_size, input_start)

    def weights(rows: slice) -> Tensor:
        values = unpack_gemv_fast(qweight[rows.start // FAST_ROWS : rows.stop // FAST_ROWS]).to(wide)
        some_scales = scales[:, rows].t().to(wide)
        offsets = some_scales * -_MIDDLE if scaled_zeros is None else scaled_zeros[:, rows].t().to(wide)
        return values * some_scales[:, groups] + offsets[:, groups]

    return multiply_in_chunks(x, weights, scales.shape[1], bias, unit=FAST_ROWS)


def _groups(x: Tensor, group_size: int, input_start: int) -> Tensor:
    return torch.arange(input_start, input_start + x.shape[1], device=x.device) // group_size
