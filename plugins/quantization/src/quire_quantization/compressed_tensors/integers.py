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
from quire_quantization.compressed_tensors.packing import (
    WORD_BITS,
    num_gapped_words,
    num_words,
    pack,
    unpack,
    unpack_gapped,
)
from quire_quantization.tensor_checks import require_finite, unused_bias

_REPACKED_WEIGHTS = 1 << 18
"""How many weights of the old packing are unpacked at a time."""


@dataclass(slots=True, frozen=True)
class StoredIntegers:
    """How a module's integer weights lie in the checkpoint.

    Attributes:
        bits: of a weight as it is stored: those of the scheme where packed, else 8.
        is_packed: "weight_packed", words of int32, with an offset; else "weight", int8.
        has_gaps: whether no integer goes on in the next word, as it was up to compressed-tensors 0.12.
        shape_dtype: of "weight_shape"; None: there is none.
        group_size: inputs that share a scale; None: all of an output's.
        is_per_tensor: one scale for the whole module, of shape `scale_shape`.
        has_flat_scales: one scale per output, stored as [N] and not as [N, 1].
        has_zeros: "weight_zero_point". has_input_groups: "weight_g_idx".
        takes_all_rows: whether the module's rows are the layer part's, in their order.
    """

    bits: int
    is_packed: bool
    scale_dtype: torch.dtype
    has_gaps: bool = False
    shape_dtype: torch.dtype | None = None
    scale_shape: tuple[int, ...] | None = None
    has_flat_scales: bool = False
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
        slots = [self._word_slot(rows), self._scale_slot(part)]
        if stored.shape_dtype is not None:
            slots.append(self._shape_slot(part, stored.shape_dtype))
        if stored.has_zeros:
            slots.append(self._zero_slot(part))
        if stored.has_input_groups:
            whole = _meta((self._shape.whole_in_features,), torch.int32)
            slots.append(TensorSlot("weight_g_idx", whole, store=self._take_input_groups))
        if self.bias is not None:
            slots.append(TensorSlot("bias", self.bias[rows], 0))
        else:
            slots.append(unused_bias(rows.stop - rows.start, self._shape.dtype))
        return slots

    def settle_order(self) -> None:
        """Drop input groups of -1 once all is loaded: the inputs are in groups in their own order."""
        group_size = self._stored.group_size
        if self.input_groups is None or group_size is None or int(self.input_groups[0]) >= 0:
            return
        columns = _consecutive_columns(self._shape, group_size)
        self.input_groups = None
        self.scales = self.scales.index_select(1, columns)
        self.zeros = None if self.zeros is None else self.zeros.index_select(1, columns)

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

    def _word_slot(self, rows: slice) -> TensorSlot:
        words, stored = self.words[rows], self._stored
        if not stored.is_packed:
            return TensorSlot("weight", words, 0, 1)
        if not stored.has_gaps:
            return TensorSlot(
                "weight_packed", words, 0, 1, inputs_per_element=Fraction(WORD_BITS, stored.bits)
            )
        inputs, first = self._shape.whole_in_features, self._shape.input_start
        columns = slice(first, first + self._shape.in_features)

        def store(source: Tensor) -> None:
            step = max(1, _REPACKED_WEIGHTS // inputs)
            for start in range(0, len(words), step):
                integers = unpack_gapped(source[start : start + step], stored.bits, inputs)
                words[start : start + step] = pack(integers[:, columns], stored.bits)

        whole = _meta((len(words), num_gapped_words(inputs, stored.bits)), torch.int32)
        return TensorSlot("weight_packed", whole, 0, store=store)

    def _scale_slot(self, part: str | None) -> TensorSlot:
        target, stored, columns = self.scales[self._shape.rows(part)], self._stored, self._columns

        def fill(source: Tensor) -> None:
            require_finite(source, "weight_scale")
            target.copy_(source)

        if stored.scale_shape is not None:
            whole = _meta(stored.scale_shape, stored.scale_dtype)
            return TensorSlot("weight_scale", whole, store=lambda source: fill(source.reshape(1, 1)))
        groups = _whole_groups(self._shape, stored)
        size = (len(target),) if stored.has_flat_scales else (len(target), groups)
        return TensorSlot(
            "weight_scale",
            _meta(size, stored.scale_dtype),
            0,
            store=lambda source: fill(source.reshape(-1, groups).index_select(1, columns)),
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
        taken, whole_rows, has_gaps = shape.whole_rows(part), shape.whole_width(part), self._stored.has_gaps
        read, count_words = (unpack_gapped, num_gapped_words) if has_gaps else (unpack, num_words)
        ends = (taken.start, taken.stop, whole_rows)
        if not has_gaps and not any(count * bits % WORD_BITS for count in ends):
            whole = _meta((num_words(len(target), bits), groups), torch.int32)
            per_word, taken = Fraction(WORD_BITS, bits), slice(0, len(target))
            output_dim: int | None = 0
        elif self._stored.takes_all_rows:
            whole, per_word, output_dim = (
                _meta((count_words(whole_rows, bits), groups), torch.int32),
                Fraction(1),
                None,
            )
        else:
            raise QuantizationError(
                f"weight_zero_point packs outputs of {bits} bits in words, and the layer takes {len(target)} rows of "
                "the module: expected all, or such as fill whole words; such a checkpoint cannot be loaded here"
            )

        def store(source: Tensor) -> None:
            unpacked = read(source.t().contiguous(), bits, taken.stop).t()
            _fill(target, unpacked[taken].index_select(1, columns))

        return TensorSlot("weight_zero_point", whole, output_dim, None, per_word, store=store)

    def _shape_slot(self, part: str | None, dtype: torch.dtype) -> TensorSlot:
        """Where a part takes some of the module's rows, its outputs are not known."""
        inputs = self._shape.whole_in_features
        outputs = self._shape.whole_width(part) if self._stored.takes_all_rows else None

        def check(source: Tensor) -> None:
            found = source.tolist()
            expected = [found[0] if outputs is None else outputs, inputs]
            if found != expected:
                raise QuantizationError(
                    f"says {found}: expected {expected}, outputs and inputs; check that config.json belongs to "
                    "these weights"
                )

        return TensorSlot("weight_shape", _meta((2,), dtype), store=check)

    def _take_input_groups(self, source: Tensor) -> None:
        """Keep those of the slice; all -1 where one is: compressed-tensors takes inputs in their own order then."""
        shape, last = self._shape, _whole_groups(self._shape, self._stored) - 1
        assert self.input_groups is not None
        if bool((source == -1).any()):
            self.input_groups.fill_(-1)
            return
        low, high = int(source.min()), int(source.max())
        if low < 0 or high > last:
            raise QuantizationError(
                f"names groups {low} to {high}: expected 0 to {last}; the checkpoint is damaged, fetch it again"
            )
        self.input_groups.copy_(source[shape.input_start : shape.input_start + shape.in_features])


def _group_columns(shape: LinearShape, stored: StoredIntegers) -> Tensor:
    """Which of the module's groups each group of the slice's inputs has; finer ones where a slice cuts groups."""
    if stored.group_size is None:
        return torch.zeros(1, dtype=torch.int64)
    if stored.has_input_groups:
        return torch.arange(_whole_groups(shape, stored))
    return _consecutive_columns(shape, stored.group_size)


def _consecutive_columns(shape: LinearShape, group_size: int) -> Tensor:
    step = math.gcd(group_size, shape.input_start, shape.in_features)
    return torch.arange(shape.input_start, shape.input_start + shape.in_features, step) // group_size


def _whole_groups(shape: LinearShape, stored: StoredIntegers) -> int:
    return 1 if stored.group_size is None else shape.whole_in_features // stored.group_size


def _meta(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


def _fill(target: Tensor, source: Tensor) -> None:
    target.copy_(source)
