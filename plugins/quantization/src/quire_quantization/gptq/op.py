"""Reference of the linear that multiplies out of GPTQ's own layout."""

from __future__ import annotations

import torch
from torch import Tensor

from quire_quantization.chunked import multiply_in_chunks, wide_dtype
from quire_quantization.gptq.packing import WORD_BITS, unpack, unpack_zeros


def gptq_linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    qzeros: Tensor | None,
    g_idx: Tensor | None,
    bias: Tensor | None,
    bits: int,
    zero_offset: int,
) -> Tensor:
    """A linear layer over a GPTQ checkpoint's tensors: y = x @ ((q - zero) * scale) + bias.

    Products are computed in float32, or float64 where x is.

    Args:
        x: [T, K], any floating dtype.
        qweight: int32 [K * bits / 32, N], packed along the inputs.
        scales: [G, N], float16, bfloat16 or float32.
        qzeros: int32 [G, N * bits / 32], packed along the outputs; None: 2**(bits - 1) throughout.
        g_idx: int32 [K], each input's group; None: K / G inputs after each other share a group.
        bias: [N] in x's dtype, or None.
        bits: 2, 3, 4 or 8.
        zero_offset: what is added to a stored zero point, modulo 2**bits.

    Returns:
        [T, N], x's dtype, a new tensor.

    Source: Frantar et al. 2022; the layout is AutoGPTQ's.
    """
    wide = wide_dtype(x)

    def weights(rows: slice) -> Tensor:
        integers = unpack(qweight[:, rows], bits)
        zeros = None
        if qzeros is not None:
            words = qzeros[:, rows.start * bits // WORD_BITS : rows.stop * bits // WORD_BITS]
            zeros = unpack_zeros(words, bits, zero_offset)
        return _dequantize(integers, zeros, scales[:, rows].to(wide), g_idx, bits).t()

    return multiply_in_chunks(x, weights, scales.shape[1], bias, unit=WORD_BITS)


def _dequantize(
    integers: Tensor, zeros: Tensor | None, scales: Tensor, g_idx: Tensor | None, bits: int
) -> Tensor:
    """Weights [K, n] in the dtype of `scales` [G, n]: exact, since integers are subtracted as such."""
    signed = integers.to(torch.int16)
    if g_idx is not None:
        zero = 1 << (bits - 1) if zeros is None else zeros.to(torch.int16).index_select(0, g_idx)
        return (signed - zero).to(scales.dtype) * scales.index_select(0, g_idx)
    groups, columns = scales.shape
    zero = 1 << (bits - 1) if zeros is None else zeros.to(torch.int16)[:, None]
    grouped = signed.view(groups, -1, columns) - zero
    return (grouped.to(scales.dtype) * scales[:, None]).view(-1, columns)
