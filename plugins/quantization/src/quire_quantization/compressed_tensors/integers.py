"""Integer weights as compressed-tensors stores them, on their way into the form that they are multiplied in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quire.api.errors import QuantizationError
from quire.nn.linear_method import LinearShape, TensorSlot
from quire_quantization.compressed_tensors.packing import WORD_BITS, num_words, unpack


@dataclass(slots=True, frozen=True)
class StoredIntegers:
    """How a module's integer weights lie in the checkpoint.

    Attributes:
        bits: of a weight as it is stored: those of the scheme where packed, else 8.
        is_packed: "weight_packed", words of int32, with an offset; else "weight", int8.
        group_size: inputs that share a scale; None: all of an output's.
        is_per_tensor: one scale for the whole module, of shape `scale_shape`.
        has_zeros: "weight_zero_point". has_input_groups: "weight_g_idx".
        takes_all_rows: whether the module's rows are the layer part's, in their order.
    """

    bits: int
    is_packed: bool
    scale_dtype: torch.dtype
    scale_shape: tuple[int, ...] | None = None
    group_size: int | None = None
    has_zeros: bool = False
    has_input_groups: bool = False
    takes_all_rows: bool = True

    @property
    def is_per_tensor(self) -> bool:
        """Whether one scale serves the whole module."""
        return self.scale_shape is not None


class StoredWeights(nn.Module):
    """The raw tensors of one layer: filled by the loader, read row by row, and then dropped."""

    def __init__(self, shape: LinearShape, stored: StoredIntegers) -> None:
        """Allocate the tensors, uninitialized.

        Raises:
            QuantizationError: the layer's inputs do not fill whole words.
        """
        super().__init__()
        self._shape, self._stored = shape, stored
        outputs, inputs = shape.out_features, shape.in_features
        self._columns = _group_columns(shape, stored)
        groups = len(self._columns)
        width, dtype = (
            (num_words(inputs, stored.bits), torch.int32) if stored.is_packed else (inputs, torch.int8)
        )
        device = shape.device
        self.register_buffer("words", torch.empty(outputs, width, dtype=dtype, device=device))
        self.register_buffer("scales", torch.empty(outputs, groups, dtype=stored.scale_dtype, device=device))
        zeros = torch.empty(outputs, groups, dtype=torch.uint8, device=device) if stored.has_zeros else None
        self.register_buffer("zeros", zeros)
        order = torch.empty(inputs, dtype=torch.int32, device=device) if stored.has_input_groups else None
        self.register_buffer("input_groups", order)
        bias = torch.empty(outputs, dtype=shape.dtype, device=device) if shape.has_bias else None
        self.register_buffer("bias", bias)

    words: Tensor
    scales: Tensor
    zeros: Tensor | None
    input_groups: Tensor | None
    bias: Tensor | None

    @property
    def in_features(self) -> int:
        """The inputs of the slice."""
        return self._shape.in_features

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """See LinearWeights."""
        rows, stored = self._shape.rows(part), self._stored
        words = self.words[rows]
        if stored.is_packed:
            per_word = Fraction(WORD_BITS, stored.bits)
            slots = [
                TensorSlot("weight_packed", words, 0, 1, inputs_per_element=per_word),
                TensorSlot(
                    "weight_shape", _meta((2,), torch.int64), store=self._check_shape, is_optional=True
                ),
            ]
        else:
            slots = [TensorSlot("weight", words, 0, 1)]
        slots.append(self._scale_slot(part))
        if stored.has_zeros:
            slots.append(self._zero_slot(part))
        if self.input_groups is not None:
            slots.append(TensorSlot("weight_g_idx", self.input_groups, None, 0))
        if self.bias is not None:
            slots.append(TensorSlot("bias", self.bias[rows], 0))
        return slots

    def read_rows(self, rows: slice) -> Tensor:
        """Some outputs' integers with their offset, uint8 [rows, K], in the inputs' own order."""
        words = self.words[rows]
        if self._stored.is_packed:
            return unpack(words, self._stored.bits, self._shape.in_features)
        return words.view(torch.uint8) ^ 128

    def packed(self) -> Tensor:
        """All integers in words as "weight_packed" holds them."""
        if self._stored.is_packed:
            return self.words
        octets = self.words.view(torch.uint8) ^ 128
        return F.pad(octets, (0, -octets.shape[1] % 4)).view(torch.int32)

    def _scale_slot(self, part: str | None) -> TensorSlot:
        target, stored, columns = self.scales[self._shape.rows(part)], self._stored, self._columns
        if stored.scale_shape is not None:
            whole = _meta(stored.scale_shape, stored.scale_dtype)
            return TensorSlot("weight_scale", whole, store=lambda source: _fill(target, source.reshape(1, 1)))
        whole = _meta((len(target), _whole_groups(self._shape, stored)), stored.scale_dtype)
        return TensorSlot(
            "weight_scale", whole, 0, store=lambda source: _fill(target, source.index_select(1, columns))
        )

    def _zero_slot(self, part: str | None) -> TensorSlot:
        shape, stored, columns = self._shape, self._stored, self._columns
        assert self.zeros is not None
        target, groups = self.zeros[shape.rows(part)], _whole_groups(shape, stored)
        offset = 1 << (stored.bits - 1)
        if stored.scale_shape is not None:
            whole = _meta(stored.scale_shape, torch.int8)
            return TensorSlot(
                "weight_zero_point", whole, store=lambda source: _fill(target, source.reshape(1, 1) + offset)
            )
        if not stored.is_packed:
            whole = _meta((len(target), groups), torch.int8)
            return TensorSlot(
                "weight_zero_point",
                whole,
                0,
                store=lambda source: _fill(target, source.index_select(1, columns).to(torch.int16) + offset),
            )
        return self._packed_zero_slot(part, target)

    def _packed_zero_slot(self, part: str | None, target: Tensor) -> TensorSlot:
        """Zero points are packed along the outputs; where a slice cuts a word the whole tensor is read."""
        shape, bits, columns = self._shape, self._stored.bits, self._columns
        groups = _whole_groups(shape, self._stored)
        taken, whole_rows = shape.whole_rows(part), _whole_outputs(shape, part)
        if not any(count * bits % WORD_BITS for count in (taken.start, taken.stop, whole_rows)):
            whole = _meta((num_words(len(target), bits), groups), torch.int32)
            per_word, taken = Fraction(WORD_BITS, bits), slice(0, len(target))
            output_dim: int | None = 0
        elif self._stored.takes_all_rows:
            whole, per_word, output_dim = (
                _meta((num_words(whole_rows, bits), groups), torch.int32),
                Fraction(1),
                None,
            )
        else:
            raise QuantizationError(
                f"weight_zero_point packs {Fraction(WORD_BITS, bits)} outputs in a word, and the layer takes "
                f"{len(target)} rows of the module: expected a multiple; such a checkpoint cannot be loaded here"
            )

        def store(source: Tensor) -> None:
            unpacked = unpack(source.t().contiguous(), bits, taken.stop).t()
            _fill(target, unpacked[taken].index_select(1, columns))

        return TensorSlot("weight_zero_point", whole, output_dim, None, per_word, store=store)

    def _check_shape(self, found: Tensor) -> None:
        inputs = self._shape.whole_in_features
        if int(found[1]) != inputs:
            raise QuantizationError(
                f"says {found.tolist()}: expected {inputs} inputs; check that config.json belongs to these weights"
            )


def _group_columns(shape: LinearShape, stored: StoredIntegers) -> Tensor:
    """Which of the module's groups each group of the slice's inputs has; finer ones where a slice cuts groups."""
    if stored.group_size is None:
        return torch.zeros(1, dtype=torch.int64)
    if stored.has_input_groups:
        return torch.arange(_whole_groups(shape, stored))
    step = math.gcd(stored.group_size, shape.input_start, shape.in_features)
    return torch.arange(shape.input_start, shape.input_start + shape.in_features, step) // stored.group_size


def _whole_groups(shape: LinearShape, stored: StoredIntegers) -> int:
    return 1 if stored.group_size is None else shape.whole_in_features // stored.group_size


def _whole_outputs(shape: LinearShape, part: str | None) -> int:
    index = shape.index(part)
    return shape.parts[index][1] if shape.whole is None else shape.whole.part_widths[index]


def _meta(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


def _fill(target: Tensor, source: Tensor) -> None:
    target.copy_(source)
