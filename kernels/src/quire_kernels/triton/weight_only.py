"""What the Triton linears with integer weights and 16-bit inputs share: choosing and launching kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.api.errors import ShapeError
from quire.ops import tiled_linear
from quire.ops.tiles import TILE, inputs_per_word
from quire_kernels.triton.launch import device_traits, on_device_of
from quire_kernels.triton.plans import Plan, make_plan
from quire_kernels.triton.weight_only_kernels import arrange_inputs, dequantize, sum_splits, tiled_product

MOST_TILED_ROWS = 256
"""Beyond, weights are dequantized and torch multiplies."""
_CHUNK_BYTES = 32 << 20
"""Of dequantized weights at a time: they stay in the cache of a large GPU."""
_DIRECT_ROWS = 16
"""Beyond, inputs are arranged by field first, so that they load in whole lines."""


@dataclass(slots=True, frozen=True)
class TiledWeight:
    """The weights of one linear: the ops' arguments of these names, and what follows from them."""

    weight: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    out_features: int

    @property
    def words(self) -> int:
        """32-bit words of one output."""
        return self.weight.shape[1]

    @property
    def inputs(self) -> int:
        """K."""
        return self.words * inputs_per_word(self.bits)

    @property
    def groups(self) -> int:
        """G."""
        return self.scales.shape[1]

    def part(self, outputs: slice) -> TiledWeight:
        """Some of the outputs, from a whole tile on."""
        tiles = slice(outputs.start // TILE, -(-outputs.stop // TILE))
        zeros = None if self.zeros is None else self.zeros[tiles]
        size = outputs.stop - outputs.start
        return TiledWeight(self.weight[tiles], self.scales[tiles], zeros, self.bits, size)


def weight_only_linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    input_order: Tensor | None,
    bias: Tensor | None,
    out_features: int,
    bits: int,
) -> Tensor:
    """`w4a16_linear` or `w8a16_linear` of `quire.ops.tiled_linear`, by `bits`.

    Raises:
        ShapeError: x is neither bfloat16 nor float16, or has other inputs than the weights.
    """
    matrix = TiledWeight(weight, scales, zeros, bits, out_features)
    _check(x, matrix)
    rows = x.shape[0]
    if rows == 0 or out_features == 0:
        return x.new_empty(rows, out_features)
    if matrix.words % matrix.groups:  # a group ends within a word
        reference = tiled_linear.w4a16_linear if bits == 4 else tiled_linear.w8a16_linear
        return reference(x, weight, scales, zeros, input_order, bias, out_features)
    with on_device_of(x):
        if rows > MOST_TILED_ROWS:
            return dequantized_linear(x, matrix, input_order, bias)
        device = device_traits(x.device)
        plan = make_plan(rows, out_features, matrix.words, matrix.words // matrix.groups, device)
        return tiled_linear_by(plan, x, matrix, input_order, bias)


def tiled_linear_by(
    plan: Plan, x: Tensor, matrix: TiledWeight, input_order: Tensor | None, bias: Tensor | None
) -> Tensor:
    """The product by the tiled kernel, as planned; splits are summed in float32, in order."""
    rows, size = x.shape[0], matrix.out_features
    is_arranged = input_order is not None or rows > _DIRECT_ROWS
    x = _arranged(x, matrix, input_order) if is_arranged else x if x.stride(1) == 1 else x.contiguous()
    out = x.new_empty(rows, size)
    is_split = plan.splits > 1
    target = x.new_empty(plan.splits, rows, size, dtype=torch.float32) if is_split else out
    steps = -(-matrix.words // plan.block_words)
    words_per_group = matrix.words // matrix.groups
    tiled_product[-(-rows // plan.block_rows) * -(-size // plan.block_outputs), plan.splits](
        x,
        matrix.weight.contiguous(),
        matrix.scales.contiguous(),
        None if matrix.zeros is None else matrix.zeros.contiguous(),
        bias,
        target,
        rows,
        size,
        matrix.words,
        matrix.groups,
        max(1, words_per_group // plan.block_words),
        words_per_group,
        x.stride(0),
        matrix.inputs // (16 // matrix.bits) if is_arranged else 2,
        -(-steps // plan.splits),
        BITS=matrix.bits,
        GROUPING=plan.grouping,
        WORD_STRIDE=2 if is_arranged else inputs_per_word(matrix.bits),
        IS_EVEN=matrix.words % plan.block_words == 0,
        IS_SPLIT=is_split,
        IS_PACKED=plan.is_packed,
        BLOCK_ROWS=plan.block_rows,
        BLOCK_OUTPUTS=plan.block_outputs,
        BLOCK_WORDS=plan.block_words,
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
    )
    if is_split:
        grid = (-(-out.numel() // 256),)
        sum_splits[grid](target, bias, out, out.numel(), size, SPLITS=plan.splits, BLOCK=256)
    return out


def dequantized_linear(
    x: Tensor, matrix: TiledWeight, input_order: Tensor | None, bias: Tensor | None
) -> Tensor:
    """The product by torch, with chunks of the weights in x's dtype."""
    if input_order is not None:
        x = x.index_select(1, input_order)
    out = x.new_empty(x.shape[0], matrix.out_features)
    for outputs in _chunks(matrix):
        dense = dequantized(matrix.part(outputs), x.dtype)
        if bias is None:
            torch.mm(x, dense.t(), out=out[:, outputs])
        else:
            torch.addmm(bias[outputs], x, dense.t(), out=out[:, outputs])
    return out


def dequantized(matrix: TiledWeight, dtype: torch.dtype) -> Tensor:
    """The weights [N, K]: products in float32, rounded to dtype."""
    out = torch.empty(matrix.out_features, matrix.inputs, dtype=dtype, device=matrix.weight.device)
    block_words = 32
    dequantize[-(-matrix.out_features // TILE), -(-matrix.words // block_words)](
        matrix.weight.contiguous(),
        matrix.scales.contiguous(),
        None if matrix.zeros is None else matrix.zeros.contiguous(),
        out,
        matrix.out_features,
        matrix.words,
        matrix.groups,
        matrix.words // matrix.groups,
        BITS=matrix.bits,
        BLOCK_WORDS=block_words,
    )
    return out


def _arranged(x: Tensor, matrix: TiledWeight, input_order: Tensor | None) -> Tensor:
    """Rows of x as `tiled_product` reads them fastest: by field, then word, then half."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x = x if x.stride(1) == 1 else x.contiguous()
    grid = (x.shape[0], -(-x.shape[1] // 1024))
    arrange_inputs[grid](x, input_order, out, x.shape[1], x.stride(0), BITS=matrix.bits, BLOCK=1024)
    return out


def _chunks(matrix: TiledWeight) -> Iterator[slice]:
    step = max(256, _CHUNK_BYTES // (2 * matrix.inputs) // 256 * 256)
    for start in range(0, matrix.out_features, step):
        yield slice(start, min(start + step, matrix.out_features))


def _check(x: Tensor, matrix: TiledWeight) -> None:
    if x.dtype not in (torch.bfloat16, torch.float16):
        raise ShapeError(
            f"x is {x.dtype}; the Triton kernel takes torch.bfloat16 and torch.float16: use the op's reference"
        )
    if x.dim() != 2 or x.shape[1] != matrix.inputs:
        raise ShapeError(f"x is {list(x.shape)}; weights of {matrix.inputs} inputs take [T, {matrix.inputs}]")
