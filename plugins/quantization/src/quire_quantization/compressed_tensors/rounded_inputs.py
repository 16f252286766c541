"""Integer weights whose inputs are rounded to 8 bits as well: W8A8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from quire.api.protocols import Ops
from quire.nn.linear_method import LinearShape, TensorSlot
from quire_quantization.compressed_tensors.integers import StoredIntegers, StoredWeights
from quire_quantization.compressed_tensors.stored_module import input_scale_slot
from quire_quantization.tiled import pack_rows


@dataclass(slots=True, frozen=True)
class W8A8Method:
    """8-bit weights and inputs, products of integers.

    Attributes:
        input_scale_shape: of the checkpoint's "input_scale"; None: each row of the inputs has a scale of its own.
    """

    name: ClassVar[str] = "compressed-tensors W8A8"
    op: ClassVar[str] = "w8a8_linear"

    stored: StoredIntegers
    input_scale_shape: tuple[int, ...] | None
    ops: Ops = field(compare=False, repr=False)

    @property
    def fuses(self) -> bool:
        """See LinearMethod: static scales of the inputs differ from part to part."""
        return self.input_scale_shape is None

    def create(self, shape: LinearShape) -> W8A8Weights:
        """See LinearMethod."""
        return W8A8Weights(shape, self)


class W8A8Weights(nn.Module):
    """Raw tensors while they are loaded, then tiles."""

    weight: Tensor | None
    scales: Tensor | None
    bias: Tensor | None
    input_scale: Tensor | None

    def __init__(self, shape: LinearShape, method: W8A8Method) -> None:
        super().__init__()
        self._shape, self._op = shape, method.ops.w8a8_linear
        self._input_scale_shape = method.input_scale_shape
        self.raw: StoredWeights | None = StoredWeights(shape, method.stored)
        for name in ("weight", "scales", "bias"):
            self.register_buffer(name, None)
        is_static = method.input_scale_shape is not None
        self.register_buffer("input_scale", torch.empty(1, device=shape.device) if is_static else None)

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """See LinearWeights; before processing only."""
        if self.raw is None:
            return ()
        slots = list(self.raw.tensor_slots(part))
        if self.input_scale is not None and self._input_scale_shape is not None:
            slots.append(input_scale_slot("input_scale", self.input_scale, self._input_scale_shape))
        return slots

    def process_after_loading(self) -> None:
        """Lay the integers out in tiles."""
        raw, self.raw = self.raw, None
        if raw is not None:
            self.weight = pack_rows(self._shape, 8, raw.read_rows)
            self.scales = raw.scales.flatten().to(torch.float32)
            self.bias = raw.bias

    def product(self) -> Callable[[Tensor], Tensor]:
        """See LinearWeights."""
        if self.weight is None:
            raise RuntimeError("the product was asked for before process_after_loading")
        op, out_features = self._op, self._shape.out_features
        buffers = (self.weight, self.scales, self.input_scale, self.bias)

        def multiply(x: Tensor) -> Tensor:
            result: Tensor = op(x, *buffers, out_features)
            return result

        return multiply
