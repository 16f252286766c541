"""Layers in AWQ's layouts: multiplied as they are stored, or repacked into tiles."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import gcd
from typing import ClassVar

import torch
from torch import Tensor, nn

from quire.api.errors import QuantizationError
from quire.api.protocols import Ops
from quire.nn.linear_method import LinearShape, TensorSlot
from quire_quantization.awq.config import Layout
from quire_quantization.awq.packing import PER_WORD, unpack_fields, unpack_gemm
from quire_quantization.awq.tensors import AwqFormat, InputRange, StoredTensors
from quire_quantization.tiled import OPS, IntegerWeights, TiledWeights, tile_refusal

OP_OF: Mapping[Layout, str] = {
    "gemm": "awq_linear",
    "gemv": "awq_gemv_linear",
    "gemv_fast": "awq_gemv_fast_linear",
}
"""By layout: the op that multiplies it as it is stored."""

_MIDDLE = 8
"""The zero point that tiles have where none is stored."""

logger = logging.getLogger("quire")


class AwqWeights(nn.Module):
    """A layer multiplied as it is stored."""

    def __init__(self, stored: AwqFormat, shape: LinearShape, ops: Ops) -> None:
        super().__init__()
        self.tensors = StoredTensors(stored, shape)
        self._op = getattr(ops, OP_OF[stored.layout])

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """See LinearWeights."""
        return self.tensors.slots(part)

    def process_after_loading(self) -> None:
        """See LinearWeights; nothing to do."""

    def product(self) -> Callable[[Tensor], Tensor]:
        """See LinearWeights."""
        op, tensors = self._op, self.tensors
        buffers = (tensors.qweight, tensors.zeros, tensors.scales, tensors.bias)
        group_size, start = tensors.stored.group_size, tensors.stored.table_start(tensors.inputs)

        def multiply(x: Tensor) -> Tensor:
            result: Tensor = op(x, *buffers, group_size, start)
            return result

        return multiply


class AwqTiledWeights(nn.Module):
    """A layer repacked into tiles once it is loaded."""

    def __init__(self, stored: AwqFormat, shape: LinearShape, ops: Ops) -> None:
        super().__init__()
        self.tensors: StoredTensors | None = StoredTensors(stored, shape)
        self.tiles: TiledWeights | None = None
        self._shape = shape
        self._ops = ops

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """See LinearWeights; before processing only."""
        return () if self.tensors is None else self.tensors.slots(part)

    def process_after_loading(self) -> None:
        """Lay out the tiles and free what was loaded."""
        if self.tensors is not None:
            self.tiles = TiledWeights(self._shape, _integers(self.tensors), self._ops)
            self.tensors = None

    def product(self) -> Callable[[Tensor], Tensor]:
        """See LinearWeights."""
        if self.tiles is None:
            raise RuntimeError("the product was asked for before process_after_loading")
        return self.tiles.product()


@dataclass(slots=True, frozen=True)
class AwqLinear:
    """The LinearMethod of modules that are multiplied as they are stored."""

    stored: AwqFormat
    ops: Ops = field(compare=False, repr=False)
    name: ClassVar[str] = "awq"
    fuses: ClassVar[bool] = True

    @property
    def op(self) -> str:
        """See LinearMethod."""
        return OP_OF[self.stored.layout]

    def create(self, shape: LinearShape) -> AwqWeights:
        """See LinearMethod."""
        return AwqWeights(self.stored, shape, self.ops)


@dataclass(slots=True, frozen=True)
class AwqMarlinLinear:
    """The LinearMethod of modules that are repacked into tiles."""

    stored: AwqFormat
    ops: Ops = field(compare=False, repr=False)
    name: ClassVar[str] = "awq-marlin"
    op: ClassVar[str] = OPS[4]
    fuses: ClassVar[bool] = True

    def create(self, shape: LinearShape) -> AwqTiledWeights | AwqWeights:
        """See LinearMethod; a rank's slice that tiles do not hold is multiplied as it is stored.

        Raises:
            QuantizationError: that is so, and the plugin `awq` is off.
        """
        inputs = InputRange(shape.input_start, shape.in_features, shape.whole_in_features)
        refusal = tile_refusal(4, shape.in_features, tile_group_size(self.stored, inputs))
        if not refusal:
            return AwqTiledWeights(self.stored, shape, self.ops)
        plain = without_tiles(self.stored, self.ops, refusal)
        logger.warning(
            "quantization: awq-marlin keeps %d of %d inputs, from %d on, as awq, since %s",
            inputs.count,
            inputs.whole,
            inputs.start,
            refusal,
        )
        return plain.create(shape)


def without_tiles(stored: AwqFormat, ops: Ops, refusal: str) -> AwqLinear:
    """What awq-marlin falls back to; QuantizationError where the plugin that it is of is off."""
    if getattr(ops, OP_OF[stored.layout], None) is None:
        raise QuantizationError(
            f"awq-marlin cannot keep it ({refusal}), and the plugin 'awq', which could, is off or not installed: "
            "enable it"
        )
    return AwqLinear(stored, ops)


def tile_group_size(stored: AwqFormat, inputs: InputRange) -> int:
    """The largest groups that a slice's inputs fall into evenly: the stored ones, or equal parts of them."""
    return gcd(stored.group_size, inputs.start, inputs.count)


def _integers(tensors: StoredTensors) -> IntegerWeights:
    """A layer in gemm or gemv as tiles take it."""
    stored, inputs = tensors.stored, tensors.inputs
    size, start = tile_group_size(stored, inputs), stored.table_start(inputs)
    firsts = torch.arange(start, start + inputs.count, size, device=tensors.scales.device)
    groups = firsts // stored.group_size
    scales, zeros = tensors.scales, tensors.zeros
    if stored.layout == "gemm":
        scales = scales.t()
        zeros = None if zeros is None else unpack_gemm(zeros).t()
    elif zeros is not None:
        zeros = unpack_fields(zeros)
    if zeros is not None:
        zeros = None if bool((zeros[:, groups] == _MIDDLE).all()) else zeros[:, groups].contiguous()
    return IntegerWeights(
        4, partial(_read_rows, tensors), scales[:, groups].contiguous(), zeros, bias=tensors.bias
    )


def _read_rows(tensors: StoredTensors, rows: slice) -> Tensor:
    """The integers of some outputs, uint8 [rows, K]; both ends of `rows` are multiples of 8."""
    if tensors.stored.layout == "gemv":
        return unpack_fields(tensors.qweight[rows])
    words = tensors.qweight[:, rows.start // PER_WORD : rows.stop // PER_WORD]
    return unpack_gemm(words).t().contiguous()
