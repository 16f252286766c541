"""The method `int8`: weights in 8 bits by output channel, activations rounded to 8 bits row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from quire.api.protocols import Ops
from quire.api.quantization import LayerChoice, QuantizationContext, StoredModule
from quire.nn.linear_method import LinearShape
from quire.nn.tiles import inputs_per_word
from quire_quantization.on_the_fly.options import Int8Options
from quire_quantization.on_the_fly.rounding import round_channels
from quire_quantization.on_the_fly.weights import QuantizedOnLoad, Rounding
from quire_quantization.on_the_fly.workers import Crew, Crews

_BITS = 8


class Int8Quantization:
    """A QuantizationMethod for 16-bit checkpoints."""

    def __init__(self, context: QuantizationContext) -> None:
        """See QuantizationSpec.factory."""
        self._options = context.options if isinstance(context.options, Int8Options) else Int8Options()
        self._method = Int8Method(context.ops)

    def choose(self, module: StoredModule) -> LayerChoice:
        """See QuantizationMethod."""
        reason = self._options.skip_reason(module)
        if not reason and module.in_features % inputs_per_word(_BITS):
            reason = f"its {module.in_features} inputs are not a multiple of {inputs_per_word(_BITS)}"
        return LayerChoice(None, reason) if reason else LayerChoice(self._method)


@dataclass(slots=True, frozen=True)
class Int8Method:
    """See Int8Weights."""

    ops: Ops = field(repr=False, compare=False)
    crews: Crews = field(default_factory=Crews, repr=False, compare=False)
    name: ClassVar[str] = "int8"
    op: ClassVar[str] = "w8a8_linear"
    fuses: ClassVar[bool] = True

    def create(self, shape: LinearShape) -> Int8Weights:
        """See LinearMethod."""
        return Int8Weights(shape, self.ops, self.crews.get())


class Int8Weights(QuantizedOnLoad):
    """Integers of -127 to 127 and a float32 scale for each output channel."""

    def __init__(self, shape: LinearShape, ops: Ops, crew: Crew) -> None:
        super().__init__(shape, Rounding(_BITS, 1, round_channels, torch.float32), crew)
        self._op = ops.w8a8_linear

    def product(self) -> Callable[[Tensor], Tensor]:
        """See LinearWeights."""
        op, weight, bias, out_features = self._op, self.weight, self.bias, self._shape.out_features
        scales = self.scales.flatten()[:out_features]
        return lambda x: op(x, weight, scales, None, bias, out_features)
