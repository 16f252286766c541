"""The method `int4`: weights in 4 bits by groups of inputs, activations as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from quire.api.errors import QuantizationError
from quire.api.protocols import Ops
from quire.api.quantization import LayerChoice, QuantizationContext, StoredModule
from quire.nn.linear_method import LinearShape
from quire.nn.tiles import inputs_per_word
from quire_quantization.on_the_fly.options import Int4Options
from quire_quantization.on_the_fly.rounding import round_groups
from quire_quantization.on_the_fly.weights import QuantizedOnLoad, Rounding
from quire_quantization.on_the_fly.workers import Crew, Crews

_BITS = 4


class Int4Quantization:
    """A QuantizationMethod for 16-bit checkpoints."""

    def __init__(self, context: QuantizationContext) -> None:
        """See QuantizationSpec.factory."""
        self._ops, self._crews = context.ops, Crews()
        self._options = context.options if isinstance(context.options, Int4Options) else Int4Options()

    def choose(self, module: StoredModule) -> LayerChoice:
        """See QuantizationMethod."""
        reason = self._options.skip_reason(module)
        if reason:
            return LayerChoice(None, reason)
        wanted, inputs = self._options.group_size, module.in_features
        group_size = dividing_group_size(inputs, inputs if wanted == -1 else wanted)
        if group_size is None:
            return LayerChoice(None, f"its {inputs} inputs are not a multiple of {inputs_per_word(_BITS)}")
        method = Int4Method(self._ops, group_size, self._options.symmetric, self._crews)
        is_other = wanted != -1 and group_size != wanted
        return LayerChoice(method, f"its {inputs} inputs are not a multiple of {wanted}" if is_other else "")


def dividing_group_size(in_features: int, wanted: int) -> int | None:
    """The largest group size up to `wanted` that divides the inputs into whole words; None: there is none."""
    step = inputs_per_word(_BITS)
    sizes = range(wanted - wanted % step, 0, -step)
    return next((size for size in sizes if in_features % size == 0), None)


@dataclass(slots=True, frozen=True)
class Int4Method:
    """See Int4Weights.

    Attributes:
        group_size: inputs that share a scale. symmetric: whether there are no zero points.
        crews: for the threads that quantize.
    """

    ops: Ops = field(repr=False, compare=False)
    group_size: int
    symmetric: bool = True
    crews: Crews = field(default_factory=Crews, repr=False, compare=False)
    op: ClassVar[str] = "w4a16_linear"
    fuses: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """See LinearMethod."""
        return f"int4 in groups of {self.group_size}{'' if self.symmetric else ' with zero points'}"

    def create(self, shape: LinearShape) -> Int4Weights:
        """See LinearMethod; a slice whose inputs the groups do not divide gets smaller ones.

        Raises:
            QuantizationError: no groups divide the slice's inputs.
        """
        group_size = dividing_group_size(shape.in_features, self.group_size)
        if group_size is None:
            raise QuantizationError(
                f"a slice of {shape.in_features} of its {shape.whole_in_features} inputs cannot be kept in 4 bits: "
                f"a multiple of {inputs_per_word(_BITS)} is needed; use fewer ranks or the option ignore"
            )
        rounding = Rounding(
            _BITS,
            shape.in_features // group_size,
            partial(round_groups, group_size=group_size, symmetric=self.symmetric),
            torch.float16,
            has_zeros=not self.symmetric,
        )
        return Int4Weights(shape, rounding, self.ops, self.crews.get())


class Int4Weights(QuantizedOnLoad):
    """Integers of 0 to 15, and for each output and group a scale in 16 bits and maybe a zero point."""

    def __init__(self, shape: LinearShape, rounding: Rounding, ops: Ops, crew: Crew) -> None:
        super().__init__(shape, rounding, crew)
        self._op = ops.w4a16_linear

    def product(self) -> Callable[[Tensor], Tensor]:
        """See LinearWeights."""
        op, out_features = self._op, self._shape.out_features
        weight, scales, zeros, bias = self.weight, self.scales, self.zeros, self.bias
        return lambda x: op(x, weight, scales, zeros, None, bias, out_features)
