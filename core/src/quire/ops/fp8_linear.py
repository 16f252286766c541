"""Reference of the linear over 8-bit floats (float8_e4m3fn): products in float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from quire.api.errors import ShapeError

LARGEST = 448.0
"""The largest float8_e4m3fn."""

_CHUNK_WEIGHTS = 1 << 21
"""How many weights are dequantized at a time: 8 MB in float32."""


def fp8_linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    input_scale: Tensor | None,
    quantize_input: bool,
    bias: Tensor | None,
    block_rows: int,
    block_columns: int,
) -> Tensor:
    """A linear layer with float8_e4m3fn weights, each block with a scale: y = x @ (weight * scale).T + bias.

    Args:
        x: [T, K], any floating dtype.
        weight: float8_e4m3fn [N, K].
        scales: float32 [ceil(N / block_rows), ceil(K / block_columns)].
        input_scale: float32 [1], what inputs are divided by before rounding; None: by `quantize_inputs`.
        quantize_input: whether inputs are rounded to float8_e4m3fn; without, `input_scale` has no effect.
        bias: [N] in x's dtype, or None.
        block_rows: outputs of a block: 1 for a scale per output, N for one scale.
        block_columns: inputs of a block: K, or less where inputs have scales by group too.

    Returns:
        [T, N], x's dtype, a new tensor.

    Raises:
        ShapeError: the scales are not one per block.

    Source: llm-compressor's FP8 schemes; with blocks, DeepSeek-AI 2024 (DeepSeek-V3, section 3.3).
    """
    size, inputs = weight.shape
    blocks = (-(-size // block_rows), -(-inputs // block_columns))
    if tuple(scales.shape) != blocks:
        raise ShapeError(
            f"scales {list(scales.shape)} for a weight {list(weight.shape)} in blocks of {block_rows} x "
            f"{block_columns}: {list(blocks)} are needed"
        )
    values = x.to(_wide(x.dtype))
    if quantize_input:
        rounded, by = quantize_inputs(x, input_scale, block_columns)
        values = rounded.to(values.dtype) * _by_column(by, block_columns, inputs)
    out = x.new_empty(x.shape[0], size)
    step = max(1, _CHUNK_WEIGHTS // max(1, inputs))
    for start in range(0, size, step):
        rows = slice(start, min(start + step, size))
        matrix = dequantize_blocks(weight, scales, block_rows, block_columns, rows, values.dtype)
        out[:, rows] = F.linear(values, matrix, None if bias is None else bias[rows].to(values.dtype))
    return out


def quantize_inputs(x: Tensor, input_scale: Tensor | None, group: int) -> tuple[Tensor, Tensor]:
    """Inputs as fp8_linear rounds them.

    Args:
        x: [T, K].
        input_scale: [1], or None: by row and group, the largest magnitude / 448 (1 where that is 0).
        group: columns that share a scale; the last group may be smaller.

    Returns:
        float8_e4m3fn [T, K], saturated; scales [T, ceil(K / group)] (or [1, 1]) in float32 or wider.
    """
    values = x.to(_wide(x.dtype))
    if input_scale is None:
        padded = F.pad(values, (0, -x.shape[1] % group))
        scale = padded.reshape(x.shape[0], padded.shape[1] // group, group).abs().amax(dim=2) / LARGEST
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    else:
        scale = input_scale.to(values.dtype).reshape(1, 1)
    divided = (values / _by_column(scale, group, x.shape[1])).clamp(-LARGEST, LARGEST)
    return divided.to(torch.float8_e4m3fn), scale


def dequantize_blocks(
    weight: Tensor, scales: Tensor, block_rows: int, block_columns: int, rows: slice, dtype: torch.dtype
) -> Tensor:
    """Some rows of what the weight and its scales stand for, [rows, K] in `dtype`."""
    numbers = torch.arange(rows.start, rows.stop, device=weight.device) // block_rows
    by = _by_column(scales[numbers].to(dtype), block_columns, weight.shape[1])
    return weight[rows].to(dtype) * by


def _by_column(scales: Tensor, group: int, columns: int) -> Tensor:
    """Scales [R, groups] spread over their columns, [R, columns], or [R, 1] where there is one a row."""
    return scales if scales.shape[1] == 1 else scales.repeat_interleave(group, dim=1)[:, :columns]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
