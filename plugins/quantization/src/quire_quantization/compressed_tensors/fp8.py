"""Weights of 8-bit floats, with inputs as they are or rounded to 8-bit floats too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from quire.api.errors import QuantizationError
from quire.api.protocols import Ops
from quire.api.quantization import LayerChoice, StoredModule
from quire.nn.linear_method import LinearShape, TensorSlot
from quire.nn.weight_memory import empty_weight
from quire_quantization.compressed_tensors.config import InputScheme
from quire_quantization.compressed_tensors.stored_module import (
    ONE,
    input_scale_slot,
    refuse_others,
    require_positive,
)
from quire_quantization.tensor_checks import FLOATS, outputs_of, require, require_finite, unused_bias


@dataclass(slots=True, frozen=True)
class Fp8Scheme:
    """How a config says that weights of 8-bit floats lie.

    Attributes:
        block: outputs and inputs that share a scale (None: all inputs); None: one scale for the tensor.
        inputs: None: left as they are. scales: the scales' suffix. input_scale: that of the inputs' static one.
        is_reciprocal: whether weights are divided by the scales, and not multiplied.
    """

    block: tuple[int, int | None] | None
    inputs: InputScheme | None
    scales: str = "weight_scale"
    input_scale: str = "input_scale"
    is_reciprocal: bool = False


@dataclass(slots=True, frozen=True)
class Fp8Method:
    """Weights of 8-bit floats.

    Attributes:
        label: the quantization method's, for the summary.
        scale_shape: of the stored scale where there is one for the tensor; None: one for each block.
        has_flat_scales: one scale per output, stored as [N] and not as [N, 1].
        input_scale_shape: of the inputs' static scale; None: none is stored.
        takes_all_rows: whether the module's rows are the layer part's, in their order.
    """

    op: ClassVar[str] = "fp8_linear"

    label: str
    scheme: Fp8Scheme
    scale_shape: tuple[int, ...] | None
    has_flat_scales: bool
    input_scale_shape: tuple[int, ...] | None
    takes_all_rows: bool
    ops: Ops = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        """See LinearMethod."""
        return f"{self.label} FP8 " + ("W8A16" if self.scheme.inputs is None else "W8A8")

    @property
    def fuses(self) -> bool:
        """See LinearMethod: static scales of the inputs differ from part to part."""
        return self.input_scale_shape is None

    def create(self, shape: LinearShape) -> Fp8Weights:
        """See LinearMethod."""
        return Fp8Weights(shape, self)


class Fp8Weights(nn.Module):
    """A weight float8_e4m3fn [N, K] as it is stored, and its scales in float32.

    Blocks of several outputs keep one row of scales where every part begins with a block; else each
    output has a row of its own.
    """

    weight: Tensor
    scales: Tensor
    input_scale: Tensor | None
    bias: Tensor | None

    def __init__(self, shape: LinearShape, method: Fp8Method) -> None:
        super().__init__()
        self._shape, self._method = shape, method
        size, inputs, device = shape.out_features, shape.in_features, shape.device
        self._block_rows = _kept_rows(shape, method)
        self._columns, self._block_columns = _columns(shape, method)
        blocks = (-(-size // self._block_rows), len(self._columns))
        weight = empty_weight((size, inputs), torch.float8_e4m3fn, device)
        self.register_buffer("weight", weight)
        self.register_buffer("scales", torch.empty(blocks, dtype=torch.float32, device=device))
        is_static = method.input_scale_shape is not None
        input_scale = torch.empty(1, dtype=torch.float32, device=device) if is_static else None
        self.register_buffer("input_scale", input_scale)
        bias = torch.empty(size, dtype=shape.dtype, device=device) if shape.has_bias else None
        self.register_buffer("bias", bias)

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """See LinearWeights."""
        rows = self._shape.rows(part)
        slots = [TensorSlot("weight", self.weight[rows], 0, 1), self._scale_slot(part, rows)]
        if self.input_scale is not None and self._method.input_scale_shape is not None:
            suffix, size = self._method.scheme.input_scale, self._method.input_scale_shape
            slots.append(input_scale_slot(suffix, self.input_scale, size))
        if self.bias is not None:
            slots.append(TensorSlot("bias", self.bias[rows], 0))
        else:
            slots.append(unused_bias(rows.stop - rows.start, self._shape.dtype))
        return slots

    def process_after_loading(self) -> None:
        """Nothing: the tensors are multiplied as they are stored."""

    def product(self) -> Callable[[Tensor], Tensor]:
        """See LinearWeights."""
        op, quantize_input = self._method.ops.fp8_linear, self._method.scheme.inputs is not None
        weight, scales, input_scale, bias = self.weight, self.scales, self.input_scale, self.bias
        block_rows, block_columns = self._block_rows, self._block_columns

        def multiply(x: Tensor) -> Tensor:
            return op(x, weight, scales, input_scale, quantize_input, bias, block_rows, block_columns)

        return multiply

    def _scale_slot(self, part: str | None, rows: slice) -> TensorSlot:
        method, columns = self._method, self._columns
        suffix, count = method.scheme.scales, rows.stop - rows.start
        target = self.scales[rows.start // self._block_rows : -(-rows.stop // self._block_rows)]
        block, shape = method.scheme.block, method.scale_shape
        if block is None or shape is not None:
            whole = torch.empty(() if shape is None else shape, device="meta")
            return TensorSlot(suffix, whole, store=lambda source: self._fill(target, source.reshape(1, 1)))
        width = 1 if block[1] is None else -(-self._shape.whole_in_features // block[1])
        is_cut_here = block[0] > 1 and method.takes_all_rows
        first = self._shape.whole_rows(part).start if is_cut_here else 0
        blocks = -(-self._shape.whole_width(part) // block[0]) if is_cut_here else count // block[0]
        numbers = (first + torch.arange(0, count, self._block_rows)) // block[0]

        def store(source: Tensor) -> None:
            self._fill(target, source.reshape(-1, width)[numbers].index_select(1, columns))

        whole = torch.empty((blocks,) if method.has_flat_scales else (blocks, width), device="meta")
        output_dim = None if is_cut_here else 0
        return TensorSlot(suffix, whole, output_dim, outputs_per_element=block[0], store=store)

    def _fill(self, target: Tensor, source: Tensor) -> None:
        """Take scales, as what weights are multiplied by."""
        scheme = self._method.scheme
        if scheme.is_reciprocal:
            require_positive(source, scheme.scales)
            source = source.to(torch.float32).reciprocal()
        require_finite(source, scheme.scales)
        target.copy_(source)


def choose_fp8(module: StoredModule, scheme: Fp8Scheme, label: str, ops: Ops) -> LayerChoice:
    """The method of a module of 8-bit floats.

    Raises:
        QuantizationError: its tensors are not what the scheme says.
    """
    outputs, inputs = outputs_of(module, "weight"), module.in_features
    require(module, "weight", ("float8_e4m3fn",), (outputs, inputs))
    shapes: tuple[tuple[int, ...], ...] = ONE
    if scheme.block is not None:
        rows, columns = scheme.block
        shapes = ((-(-outputs // rows), 1 if columns is None else -(-inputs // columns)),)
        if scheme.block == (1, None):
            shapes += ((outputs,),)
    found = require(module, scheme.scales, FLOATS, *shapes)
    known: tuple[str, ...] = ("weight", scheme.scales)
    input_scale_shape = None
    if scheme.inputs is not None and scheme.inputs.is_static:
        input_scale_shape = require(module, scheme.input_scale, FLOATS, *ONE).shape
        known = (*known, scheme.input_scale)
    refuse_others(module, known)
    method = Fp8Method(
        label=label,
        scheme=scheme,
        scale_shape=found.shape if scheme.block is None else None,
        has_flat_scales=scheme.block is not None and len(found.shape) == 1,
        input_scale_shape=input_scale_shape,
        takes_all_rows=module.out_features is not None,
        ops=ops,
    )
    return LayerChoice(method)


def _kept_rows(shape: LinearShape, method: Fp8Method) -> int:
    """How many outputs share a row of the scales that are kept."""
    if method.scheme.block is None:
        return 1
    rows = method.scheme.block[0]
    starts = [shape.rows(name).start for name, _ in shape.parts]
    starts += [shape.whole_rows(name).start for name, _ in shape.parts]
    return 1 if any(start % rows for start in starts) else rows


def _columns(shape: LinearShape, method: Fp8Method) -> tuple[Tensor, int]:
    """The stored scales' columns of the slice's inputs, and how many inputs share one of them."""
    block = method.scheme.block
    if block is None or block[1] is None:
        return torch.zeros(1, dtype=torch.int64), shape.in_features
    size, start, inputs = block[1], shape.input_start, shape.in_features
    is_last = start + inputs == shape.whole_in_features
    if start % size or (inputs % size and not is_last):
        if method.scheme.inputs is not None:
            raise QuantizationError(
                f"inputs {start} to {start + inputs} of {shape.whole_in_features} are to lie on this rank, and each "
                f"{size} of them are rounded together: expected a multiple; use fewer ranks"
            )
        step = math.gcd(size, start, inputs)
    else:
        step = size
    return torch.arange(start, start + inputs, step) // size, step
