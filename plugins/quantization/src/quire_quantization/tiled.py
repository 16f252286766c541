"""Integer weights in the tile layout that the w4a16 and w8a16 kernels read: repacked once, at load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quire.api.protocols import Ops
from quire.nn.linear_method import LinearShape
from quire.nn.tiles import TILE, inputs_per_word, pack_tiles, tile_columns
from quire.nn.weight_memory import empty_weight

_CHUNK_WEIGHTS = 1 << 18
"""How many weights are unpacked at a time: 256 kB, so that repacking needs no second copy of a layer."""

OPS = {4: "w4a16_linear", 8: "w8a16_linear"}
"""By bits: the op that multiplies."""

ReadRows = Callable[[slice], Tensor]
"""Some output features' integers, uint8 [rows, K], in the order of the weights' inputs."""


def tile_refusal(bits: int, in_features: int, group_size: int) -> str:
    """Why weights cannot be laid out in tiles; "" where they can.

    Args:
        bits: of a weight.
        in_features: K.
        group_size: inputs that share a scale; K for one group.
    """
    if bits not in OPS:
        return f"tiles hold 4 or 8 bits, not {bits}"
    per_word = inputs_per_word(bits)
    if in_features % group_size:
        return f"{in_features} inputs are not a multiple of the group size {group_size}"
    if group_size % per_word:
        return f"the group size {group_size} is not a multiple of {per_word}"
    return ""


@dataclass(slots=True, frozen=True)
class IntegerWeights:
    """A layer's weights as integers: w[n, k] = (q[n, k] - zero[n, g]) * scale[n, g], g the group of k.

    Attributes:
        read_rows: the integers of some output features, in the order of `input_order`.
        scales: [N, G], float16, bfloat16 or float32.
        zeros: uint8 [N, G]; None: 2**(bits - 1) throughout.
        input_order: int32 [K], the activations' column of each weight's input (act-order); None: their own.
        bias: [N] or None.
    """

    bits: int
    read_rows: ReadRows
    scales: Tensor
    zeros: Tensor | None = None
    input_order: Tensor | None = None
    bias: Tensor | None = None


def pack_rows(shape: LinearShape, bits: int, read_rows: ReadRows) -> Tensor:
    """A layer's integers in tiles, int32 [tiles, K * bits / 32, 16], read some tiles at a time."""
    tiles, words = -(-shape.out_features // TILE), shape.in_features // inputs_per_word(bits)
    packed = empty_weight((tiles, words, TILE), torch.int32, shape.device)
    step = max(1, _CHUNK_WEIGHTS // (TILE * shape.in_features))
    for first in range(0, tiles, step):
        rows = slice(first * TILE, min((first + step) * TILE, shape.out_features))
        packed[first : first + step] = pack_tiles(read_rows(rows), bits)
    return packed


class TiledWeights(nn.Module):
    """The weights of a layer in tiles, with the op that multiplies them."""

    def __init__(self, shape: LinearShape, weights: IntegerWeights, ops: Ops) -> None:
        """Lay the weights out.

        Args:
            shape: of the layer.
            weights: read tile by tile; nothing of them is kept but scales, zeros and bias.
            ops: the op table.
        """
        super().__init__()
        self.register_buffer("weight", pack_rows(shape, weights.bits, weights.read_rows))
        self.register_buffer("scales", tile_columns(weights.scales))
        self.register_buffer("zeros", None if weights.zeros is None else tile_columns(weights.zeros))
        self.register_buffer("input_order", weights.input_order)
        self.register_buffer("bias", weights.bias)
        self._op = getattr(ops, OPS[weights.bits])
        self._out_features = shape.out_features

    def product(self) -> Callable[[Tensor], Tensor]:
        """The layer's function, [T, K] to [T, N]."""
        op, out_features = self._op, self._out_features
        buffers = (self.weight, self.scales, self.zeros, self.input_order, self.bias)

        def multiply(x: Tensor) -> Tensor:
            result: Tensor = op(x, *buffers, out_features)
            return result

        return multiply
