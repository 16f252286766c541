"""Reference of the linear that multiplies out of GPTQ's own layout."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from quire_quantization.gptq.packing import WORD_BITS, unpack, unpack_zeros

_CHUNK_WEIGHTS = 1 << 20
"""How many weights are dequantized at a time: 4 MB in float32."""


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
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    values = x.to(wide)
    inputs, outputs = x.shape[1], scales.shape[1]
    out = x.new_empty(x.shape[0], outputs)
    step = max(1, _CHUNK_WEIGHTS // max(1, inputs * WORD_BITS)) * WORD_BITS
    for start in range(0, outputs, step):
        columns = slice(start, min(start + step, outputs))
        words = None if qzeros is None else qzeros[:, start * bits // 32 : columns.stop * bits // 32]
        zeros = None if words is None else unpack_zeros(words, bits, zero_offset)
        matrix = _dequantize(
            unpack(qweight[:, columns], bits), zeros, scales[:, columns].to(wide), g_idx, bits
        )
        out[:, columns] = F.linear(values, matrix.t(), None if bias is None else bias[columns].to(wide))
    return out


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
