"""Integer weights with inputs as they are: W4A16, W8A16, and other bits out of their words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from quire.api.protocols import Ops
from quire.nn.linear_method import LinearShape, TensorSlot
from quire_quantization.compressed_tensors.integers import StoredIntegers, StoredWeights
from quire_quantization.tiled import OPS, IntegerWeights, TiledWeights, tile_refusal

PLAIN_OP = "pack_quantized_linear"
"""What multiplies where the weights do not go into tiles."""


@dataclass(slots=True, frozen=True)
class WeightOnlyMethod:
    """Integer weights, multiplied with inputs in the model's dtype.

    Attributes:
        bits: of the scheme. is_tiled: whether a whole layer goes into tiles; a slice of it may not.
    """

    bits: int
    stored: StoredIntegers
    is_tiled: bool
    ops: Ops = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        """See LinearMethod."""
        return f"compressed-tensors W{self.bits}A16"

    @property
    def op(self) -> str:
        """See LinearMethod."""
        return OPS[self.stored.bits] if self.is_tiled else PLAIN_OP

    @property
    def fuses(self) -> bool:
        """See LinearMethod: with act-order each part has an order of its own."""
        return not self.stored.has_input_groups

    def create(self, shape: LinearShape) -> WeightOnlyWeights:
        """See LinearMethod."""
        return WeightOnlyWeights(shape, self.stored, self.ops)


class WeightOnlyWeights(nn.Module):
    """Raw tensors while they are loaded, then tiles, or words with the plain op."""

    def __init__(self, shape: LinearShape, stored: StoredIntegers, ops: Ops) -> None:
        super().__init__()
        self._shape, self._bits, self._ops = shape, stored.bits, ops
        self.raw: StoredWeights | None = StoredWeights(shape, stored)
        self.laid_out: TiledWeights | PackedWeights | None = None

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """See LinearWeights; before processing only."""
        return () if self.raw is None else self.raw.tensor_slots(part)

    def process_after_loading(self) -> None:
        """Lay the integers out in tiles; keep the words where that cannot be."""
        raw, self.raw = self.raw, None
        if raw is None:
            return
        raw.settle_order()
        order, columns, group_size = _input_order(raw)
        if tile_refusal(self._bits, self._shape.in_features, group_size):
            self.laid_out = PackedWeights(raw, self._bits, self._ops)
            return
        read_rows = raw.read_rows
        if order is not None:
            picked = order

            def read_rows(rows: slice) -> Tensor:
                return raw.read_rows(rows).index_select(1, picked)

        scales, zeros = raw.scales, raw.zeros
        if columns is not None:
            scales = scales.index_select(1, columns)
            zeros = None if zeros is None else zeros.index_select(1, columns)
        weights = IntegerWeights(self._bits, read_rows, scales, zeros, order, raw.bias)
        self.laid_out = TiledWeights(self._shape, weights, self._ops)

    def product(self) -> Callable[[Tensor], Tensor]:
        """See LinearWeights."""
        if self.laid_out is None:
            raise RuntimeError("the product was asked for before process_after_loading")
        return self.laid_out.product()


class PackedWeights(nn.Module):
    """The words of the checkpoint, with the op that unpacks them for every product."""

    def __init__(self, raw: StoredWeights, bits: int, ops: Ops) -> None:
        super().__init__()
        self._bits, self._op = bits, getattr(ops, PLAIN_OP)
        self.register_buffer("weight", raw.packed())
        self.register_buffer("scales", raw.scales)
        self.register_buffer("zeros", raw.zeros)
        self.register_buffer("input_groups", raw.input_groups)
        self.register_buffer("bias", raw.bias)

    def product(self) -> Callable[[Tensor], Tensor]:
        """The layer's function, [T, K] to [T, N]."""
        op, bits = self._op, self._bits
        buffers = (self.weight, self.scales, self.zeros, self.input_groups, self.bias)

        def multiply(x: Tensor) -> Tensor:
            result: Tensor = op(x, *buffers, bits)
            return result

        return multiply


def _input_order(raw: StoredWeights) -> tuple[Tensor | None, Tensor | None, int]:
    """The inputs sorted by group, the scales' column of each run of them, and the length of the runs.

    A slice of an act-order layer has more inputs of one group than of another: its runs are as long as
    the greatest common divisor, and groups repeat.
    """
    groups, ids = raw.scales.shape[1], raw.input_groups
    if ids is None:
        return None, None, raw.in_features // groups
    counts = torch.bincount(ids, minlength=groups)
    length = math.gcd(*counts.tolist())
    columns = torch.arange(groups, device=ids.device).repeat_interleave(counts // length)
    return torch.argsort(ids, stable=True).to(torch.int32), columns, length
