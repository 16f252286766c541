"""The tensors of AWQ's layouts: their shapes, how they are cut, and a layer's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quire.api.errors import QuantizationError
from quire.nn.linear_method import LinearShape, TensorSlot
from quire_quantization.awq.config import Layout
from quire_quantization.awq.packing import FAST_INPUTS, FAST_ROWS, PER_WORD
from quire_quantization.tensor_checks import store_finite, unused_bias

OUTPUTS_TOGETHER: Mapping[Layout, int] = {"gemm": PER_WORD, "gemv": 1, "gemv_fast": FAST_ROWS}
"""Outputs that no slice may part."""

INPUTS_TOGETHER: Mapping[Layout, int] = {"gemm": 1, "gemv": PER_WORD, "gemv_fast": FAST_INPUTS}
"""Inputs that no slice may part."""


@dataclass(slots=True, frozen=True)
class InputRange:
    """The inputs of a layer that a rank holds: `count` of `whole`, from `start`."""

    start: int
    count: int
    whole: int


@dataclass(slots=True, frozen=True)
class PackedTensor:
    """One tensor of a module and how it is cut; the dimensions and units are those of TensorSlot."""

    suffix: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    output_dim: int
    outputs_per_element: int = 1
    input_dim: int | None = None
    inputs_per_element: int = 1


@dataclass(slots=True, frozen=True)
class AwqFormat:
    """How a module is stored.

    Attributes:
        group_size: inputs that share a scale; all inputs of the whole layer where there is one group.
        stored_groups: groups that scales and zero points have room for; gemv pads.
        scale_dtype: of scales and of gemv_fast's scaled zero points.
        zeros_suffix: the tensor of zero points; None: none is stored, and 8 is meant.
    """

    layout: Layout
    group_size: int
    stored_groups: int
    scale_dtype: torch.dtype
    zeros_suffix: str | None

    def table_start(self, inputs: InputRange) -> int:
        """Where the first input lies in the groups that a slice keeps.

        gemm's scales are cut where the slice begins and ends with a group; elsewhere they are kept whole.
        """
        return 0 if self._cuts_groups(inputs) else inputs.start

    def tensors(self, inputs: InputRange, out_features: int) -> tuple[PackedTensor, ...]:
        """The tensors of a layer, or of a rank's slice of one."""
        if self.layout == "gemm":
            return self._gemm(inputs, out_features)
        if self.layout == "gemv":
            weight = PackedTensor(
                "qweight",
                torch.int32,
                (out_features, inputs.count // PER_WORD),
                output_dim=0,
                input_dim=1,
                inputs_per_element=PER_WORD,
            )
            size, words = (out_features, self.stored_groups), (out_features, self.stored_groups // PER_WORD)
            return (weight, *self._tables(torch.int32, words, size, 0, 1))
        weight = PackedTensor(
            "qweight",
            torch.int16,
            (out_features // FAST_ROWS, inputs.count),
            output_dim=0,
            outputs_per_element=FAST_ROWS,
            input_dim=1,
        )
        size = (self.stored_groups, out_features)
        return (weight, *self._tables(self.scale_dtype, size, size, 1, 1))

    def _gemm(self, inputs: InputRange, out_features: int) -> tuple[PackedTensor, ...]:
        words = out_features // PER_WORD
        weight = PackedTensor("qweight", torch.int32, (inputs.count, words), 1, PER_WORD, input_dim=0)
        groups = self.stored_groups
        input_dim = None
        if self._cuts_groups(inputs):
            groups, input_dim = inputs.count // self.group_size, 0
        return (
            weight,
            *self._tables(torch.int32, (groups, words), (groups, out_features), 1, PER_WORD, input_dim),
        )

    def _tables(
        self,
        zeros_dtype: torch.dtype,
        zeros_shape: tuple[int, int],
        scales_shape: tuple[int, int],
        output_dim: int,
        outputs_per_zero: int,
        input_dim: int | None = None,
    ) -> tuple[PackedTensor, ...]:
        scales = PackedTensor(
            "scales", self.scale_dtype, scales_shape, output_dim, 1, input_dim, self.group_size
        )
        if self.zeros_suffix is None:
            return (scales,)
        zeros = PackedTensor(
            self.zeros_suffix,
            zeros_dtype,
            zeros_shape,
            output_dim,
            outputs_per_zero,
            input_dim,
            self.group_size,
        )
        return (scales, zeros)

    def _cuts_groups(self, inputs: InputRange) -> bool:
        is_aligned = inputs.start % self.group_size == 0 and inputs.count % self.group_size == 0
        return self.layout == "gemm" and is_aligned


class StoredTensors(nn.Module):
    """A layer's tensors as its checkpoint stores them, in buffers called by their suffixes, and its bias.

    Attributes:
        stored: what they are. inputs: the slice of the layer that they are of.
    """

    qweight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, stored: AwqFormat, shape: LinearShape) -> None:
        """Uninitialized tensors.

        Raises:
            QuantizationError: the slice of a rank does not begin and end with what is packed together.
        """
        super().__init__()
        self.inputs = InputRange(shape.input_start, shape.in_features, shape.whole_in_features)
        self.stored = stored
        self._shape = shape
        self._tensors = stored.tensors(self.inputs, shape.out_features)
        _check_slice(stored.layout, shape)
        for tensor in self._tensors:
            self.register_buffer(
                tensor.suffix, torch.empty(tensor.shape, dtype=tensor.dtype, device=shape.device)
            )
        bias = torch.empty(shape.out_features, dtype=shape.dtype, device=shape.device)
        self.register_buffer("bias", bias if shape.has_bias else None)

    @property
    def zeros(self) -> Tensor | None:
        """The tensor of zero points, as it is stored."""
        suffix = self.stored.zeros_suffix
        return None if suffix is None else self.get_buffer(suffix)

    def slots(self, part: str | None) -> list[TensorSlot]:
        """See LinearWeights.tensor_slots."""
        rows = self._shape.rows(part)
        slots = [self._slot(tensor, rows) for tensor in self._tensors]
        if self.bias is not None:
            slots.append(TensorSlot("bias", self.bias[rows], output_dim=0))
        else:
            slots.append(unused_bias(rows.stop - rows.start, self._shape.dtype))
        return slots

    def _slot(self, tensor: PackedTensor, rows: slice) -> TensorSlot:
        per = tensor.outputs_per_element
        size = (rows.stop - rows.start) // per
        target = self.get_buffer(tensor.suffix).narrow(tensor.output_dim, rows.start // per, size)
        return TensorSlot(
            tensor.suffix,
            target,
            tensor.output_dim,
            tensor.input_dim,
            per,
            tensor.inputs_per_element,
            store=store_finite(target, tensor.suffix) if tensor.dtype.is_floating_point else None,
        )


def _check_slice(layout: Layout, shape: LinearShape) -> None:
    for name, width in shape.parts:
        if width % OUTPUTS_TOGETHER[layout]:
            _refuse_slice(layout, f"{width} outputs of part {name!r}", OUTPUTS_TOGETHER[layout])
    if shape.input_start % INPUTS_TOGETHER[layout] or shape.in_features % INPUTS_TOGETHER[layout]:
        place = f"{shape.in_features} inputs from {shape.input_start} on"
        _refuse_slice(layout, place, INPUTS_TOGETHER[layout])


def _refuse_slice(layout: Layout, place: str, unit: int) -> None:
    raise QuantizationError(
        f"a rank is to hold {place}, and version {layout!r} packs {unit} together: use fewer ranks"
    )
