"""Reference of the linear that multiplies out of pack-quantized words."""

from __future__ import annotations

import torch
from torch import Tensor

from quire_quantization.chunked import multiply_in_chunks, wide_dtype
from quire_quantization.compressed_tensors.packing import unpack


def pack_quantized_linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    input_groups: Tensor | None,
    bias: Tensor | None,
    bits: int,
) -> Tensor:
    """A linear layer with integer weights in groups: y = x @ ((q - zero) * scale).T + bias.

    Products are computed in float32, or float64 where x is.

    Args:
        x: [T, K], any floating dtype.
        weight: int32 [N, ceil(K * bits / 32)], q of 0 to 2**bits - 1 along the inputs, lowest bits first.
        scales: [N, G], float16, bfloat16 or float32.
        zeros: uint8 [N, G], or None: 2**(bits - 1) throughout.
        input_groups: int32 [K], each input's group; None: K / G inputs after each other share a group.
        bias: [N] in x's dtype, or None.
        bits: 1 to 8.

    Returns:
        [T, N], x's dtype, a new tensor.
    """
    wide, inputs = wide_dtype(x), x.shape[1]
    groups = input_groups
    if groups is None:
        groups = torch.arange(inputs, dtype=torch.int32, device=x.device) // (inputs // scales.shape[1])

    def weights(rows: slice) -> Tensor:
        integers = unpack(weight[rows], bits, inputs).to(torch.int16)
        zero = 1 << (bits - 1) if zeros is None else zeros[rows].to(torch.int16).index_select(1, groups)
        return (integers - zero).to(wide) * scales[rows].to(wide).index_select(1, groups)

    return multiply_in_chunks(x, weights, scales.shape[0], bias)
