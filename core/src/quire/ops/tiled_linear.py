"""References of the linears over integer weights in tiles: exact integers, products in float32 or wider."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from quire.ops.tiles import TILE, unpack_tiles, untile_columns

_CHUNK_WEIGHTS = 1 << 21
"""How many weights are dequantized at a time: 8 MB in float32."""


def w4a16_linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    input_order: Tensor | None,
    bias: Tensor | None,
    out_features: int,
) -> Tensor:
    """A linear layer with 4-bit weights in groups: y = x @ ((q - zero) * scale).T + bias.

    Args:
        x: [T, K], any floating dtype.
        weight: int32 [tiles, K / 8, 16], q of 0 to 15 in the layout of `quire.ops.tiles`.
        scales: [tiles, G, 16], float16, bfloat16 or float32: one per output and group of K / G inputs.
        zeros: uint8 [tiles, G, 16], or None: 8 throughout.
        input_order: int32 [K]: the weights' input k is x's column input_order[k] (act-order); None: k.
        bias: [N] in x's dtype, or None.
        out_features: N; tiles is ceil(N / 16).

    Returns:
        [T, N], x's dtype, a new tensor.
    """
    return _weight_only(x, weight, scales, zeros, input_order, bias, out_features, 4)


def w8a16_linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    input_order: Tensor | None,
    bias: Tensor | None,
    out_features: int,
) -> Tensor:
    """The same with 8-bit weights: weight int32 [tiles, K / 4, 16], q of 0 to 255, zeros None: 128."""
    return _weight_only(x, weight, scales, zeros, input_order, bias, out_features, 8)


def w8a8_linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    input_scale: Tensor | None,
    bias: Tensor | None,
    out_features: int,
) -> Tensor:
    """A linear layer with 8-bit weights whose inputs are rounded to 8 bits too, products exact integers.

    Each row of x is divided by its scale (its largest magnitude / 127.5, or `input_scale` for all),
    rounded to the nearest, ties to even, and clamped to -128 .. 127.

    Args:
        x: [T, K], any floating dtype.
        weight: int32 [tiles, K / 4, 16]: q of 0 to 255 that stand for q - 128.
        scales: float32 [N], one per output.
        input_scale: float32 [1], or None: by row.
        bias: [N] in x's dtype, or None.
        out_features: N.

    Returns:
        [T, N], x's dtype, a new tensor.

    Source: the rounding is llm-compressor's for dynamic int8 activations.
    """
    values, input_scales = quantize_rows(x, input_scale)
    wide = _wide(x.dtype)
    out = x.new_empty(x.shape[0], out_features)
    for rows, tiles in _chunks(weight, 8, out_features):
        integers = unpack_tiles(tiles, 8)[: rows.stop - rows.start].to(torch.float64) - 128
        product = (values.to(torch.float64) @ integers.t()).to(wide) * input_scales * scales[rows].to(wide)
        out[:, rows] = product if bias is None else product + bias[rows].to(wide)
    return out


def quantize_rows(x: Tensor, input_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Inputs as w8a8_linear rounds them: int8 [T, K], and scales [T, 1] (or [1, 1]) in float32 or wider.

    A row that holds NaN, or infinity where the scale is its own, has the scale NaN.
    """
    values = x.to(_wide(x.dtype))
    if input_scale is None:
        scale = values.abs().amax(dim=1, keepdim=True) / 127.5
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    else:
        scale = input_scale.to(values.dtype).reshape(1, 1)
    quotients = values / scale
    lost = quotients.isnan()
    rounded = quotients.masked_fill(lost, 0).round().clamp(-128, 127).to(torch.int8)
    return rounded, torch.where(lost.any(dim=1, keepdim=True), torch.nan, scale)


def dequantize_tiles(
    weight: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, dtype: torch.dtype
) -> Tensor:
    """The weights that tiles stand for, [16 * tiles, K]; zeros None: 2**(bits - 1)."""
    integers = unpack_tiles(weight, bits).to(dtype)
    groups = scales.shape[1]
    grouped = integers.view(integers.shape[0], groups, -1)
    zero = float(1 << (bits - 1)) if zeros is None else untile_columns(zeros).to(dtype)[..., None]
    return ((grouped - zero) * untile_columns(scales).to(dtype)[..., None]).view_as(integers)


def _weight_only(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    input_order: Tensor | None,
    bias: Tensor | None,
    out_features: int,
    bits: int,
) -> Tensor:
    wide = _wide(x.dtype)
    values = (x if input_order is None else x.index_select(1, input_order)).to(wide)
    out = x.new_empty(x.shape[0], out_features)
    for rows, _ in _chunks(weight, bits, out_features):
        part = slice(rows.start // TILE, -(-rows.stop // TILE))
        some_zeros = None if zeros is None else zeros[part]
        matrix = dequantize_tiles(weight[part], scales[part], some_zeros, bits, wide)[
            : rows.stop - rows.start
        ]
        out[:, rows] = F.linear(values, matrix, None if bias is None else bias[rows].to(wide))
    return out


def _chunks(weight: Tensor, bits: int, out_features: int) -> Iterator[tuple[slice, Tensor]]:
    """Slices of output features, each a number of whole tiles, and their tiles."""
    tiles, words, _ = weight.shape
    step = max(1, _CHUNK_WEIGHTS // max(1, TILE * words * 32 // bits))
    for start in range(0, tiles, step):
        yield slice(start * TILE, min((start + step) * TILE, out_features)), weight[start : start + step]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
