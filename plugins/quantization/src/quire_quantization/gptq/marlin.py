"""GPTQ linears of 4 and 8 bits, repacked once at load into the tiles that the fast kernels read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quire.api.quantization import LayerChoice, StoredModule
from quire.nn.linear_method import LinearShape
from quire_quantization.gptq.layout import GPTQLayout
from quire_quantization.gptq.method import GPTQMethod, GPTQQuantization, GPTQWeights
from quire_quantization.gptq.packing import unpack, unpack_zeros
from quire_quantization.gptq.tensors import PackedWeights
from quire_quantization.tiled import OPS, IntegerWeights, TiledWeights, tile_refusal

_MIN_PIECE = 64
"""Inputs of the smallest piece of a group whose scale is repeated: below, scales would take too much."""


class GPTQMarlinWeights(GPTQWeights):
    """A layer's weights in tiles; as stored where its groups, once read, do not go into tiles."""

    def _keep(self, packed: PackedWeights) -> Callable[[Tensor], Tensor]:
        method, bits = self._method, self._method.layout.bits
        order = order_inputs(packed.groups)
        refusal = order.refusal(bits)
        if refusal:
            method.notices.warn(refusal, f"gptq-marlin keeps layers as gptq, since {refusal}")
            return super()._keep(packed)
        zeros, rows = packed.qzeros, order.group_of_piece
        weights = IntegerWeights(
            bits=bits,
            read_rows=lambda outputs: _integers(packed.qweight[:, outputs], bits, order.inputs),
            scales=packed.scales[rows].t(),
            zeros=None if zeros is None else unpack_zeros(zeros, bits, packed.zero_offset)[rows].t(),
            input_order=None if order.inputs is None else order.inputs.to(torch.int32),
            bias=packed.bias,
        )
        self.tiles = TiledWeights(self._shape, weights, method.ops)
        return self.tiles.product()


@dataclass(slots=True, frozen=True)
class GPTQMarlinMethod(GPTQMethod):
    """How one module is kept; see LinearMethod."""

    name: ClassVar[str] = "gptq-marlin"

    @property
    def op(self) -> str:
        """See LinearMethod."""
        return OPS[self.layout.bits]

    def create(self, shape: LinearShape) -> GPTQMarlinWeights:
        """See LinearMethod."""
        return GPTQMarlinWeights(shape, self)


class GPTQMarlinQuantization(GPTQQuantization):
    """The quantization method `gptq-marlin`: GPTQ checkpoints in the tiles of w4a16_linear and w8a16_linear.

    Constraints, for each module: 4 or 8 bits; a group size that is a multiple of 8 inputs (4 in 8 bits)
    and divides its inputs. Zero points and act-order go: inputs are sorted by their group once, and the
    activations on the way. Where a rank holds a slice of the inputs, the inputs of each group in it must
    be such multiples as well; pieces of groups get a scale of their own if they have 64 inputs or more.
    What does not fit is kept by the method `gptq`, whose plugin must be on then, and the reason is shown.
    """

    def _choose(self, module: StoredModule, layout: GPTQLayout) -> LayerChoice:
        refusal = tile_refusal(layout.bits, module.in_features, layout.group_size)
        if refusal:
            return LayerChoice(super()._choose(module, layout).method, refusal)
        return LayerChoice(GPTQMarlinMethod(layout, self._ops, self._notices))


@dataclass(slots=True, frozen=True)
class InputOrder:
    """The inputs of a layer sorted by their group, in pieces of equal size that share a scale.

    Attributes:
        inputs: int64 [K], the activations' column of each input in this order; None: they are sorted as they are.
        piece: inputs of a piece. num_groups: groups that there are.
        group_of_piece: int64 [K / piece], the group whose scale each piece has.
    """

    inputs: Tensor | None
    piece: int
    num_groups: int
    group_of_piece: Tensor

    def refusal(self, bits: int) -> str:
        """Why the pieces do not go into tiles; "" where they do."""
        pieces = len(self.group_of_piece)
        refusal = tile_refusal(bits, pieces * self.piece, self.piece)
        if refusal or (pieces > self.num_groups and self.piece < _MIN_PIECE):
            return (
                f"the layer (a slice of inputs, or act-order with unequal groups) has pieces of {self.piece} inputs "
                f"that share a scale: tiles need whole groups, or multiples of {_MIN_PIECE}"
            )
        return ""


def order_inputs(groups: Tensor) -> InputOrder:
    """Sort inputs by group; `groups`, int64 [K], is the group of each."""
    inputs = None
    if bool((groups.diff() < 0).any()):
        inputs = torch.argsort(groups, stable=True)
        groups = groups[inputs]
    starts = ((groups.diff() != 0).nonzero().flatten() + 1).tolist()
    piece = math.gcd(len(groups), *starts)
    return InputOrder(inputs, piece, len(starts) + 1, groups[::piece])


def _integers(qweight: Tensor, bits: int, inputs: Tensor | None) -> Tensor:
    """Some outputs' integers, uint8 [n, K], inputs in the order of tiles."""
    values = unpack(qweight.contiguous(), bits)
    if inputs is not None:
        values = values.index_select(0, inputs)
    return values.t().contiguous()
