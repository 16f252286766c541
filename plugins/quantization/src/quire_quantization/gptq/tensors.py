"""The tensors of a GPTQ layer from the checkpoint, and what they turn out to be once they are read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from quire.api.errors import QuantizationError
from quire.nn.linear_method import LinearShape, TensorSlot
from quire_quantization.gptq.config import ZERO_OFFSETS
from quire_quantization.gptq.layout import GPTQLayout
from quire_quantization.gptq.packing import WORD_ONES, add_to_words, num_words, values_per_word
from quire_quantization.gptq.zero_points import asymmetric_offset, has_carries, symmetric_offset, uniform_zero
from quire_quantization.tensor_checks import store_finite, unused_bias

logger = logging.getLogger("quire")


@dataclass(slots=True)
class Notices:
    """Says each kind of thing once per model.

    Attributes:
        said: the kinds that were said.
    """

    said: set[str] = field(default_factory=set)

    def warn(self, kind: str, message: str) -> None:
        """Log a warning, if it is the first of its kind."""
        if kind not in self.said:
            self.said.add(kind)
            logger.warning(message)


@dataclass(slots=True)
class PackedWeights:
    """A layer as stored, its doubts settled: w[k, n] = (q[k, n] - zero[g, n]) * scale[g, n], g = groups[k].

    Attributes:
        qweight: int32 [K * bits / 32, N]. scales: [G, N], of the groups that the layer's inputs are in.
        qzeros: int32 [G, N * bits / 32]; None: zeros are 2**(bits - 1).
        zero_offset: what is added to a stored zero point, modulo 2**bits.
        groups: int64 [K]. bias: [N] or None.
    """

    qweight: Tensor
    scales: Tensor
    qzeros: Tensor | None
    zero_offset: int
    groups: Tensor
    bias: Tensor | None

    @property
    def g_idx(self) -> Tensor | None:
        """The groups, int32; None where they are equally many inputs after each other."""
        inputs, groups = len(self.groups), self.scales.shape[0]
        if inputs % groups == 0 and torch.equal(self.groups, _consecutive(self.groups, inputs // groups)):
            return None
        return self.groups.to(torch.int32)


class LoadingTensors(nn.Module):
    """A layer's tensors while they are loaded.

    Scales and zero points are those of all groups of the whole layer also where a rank has a slice of
    its inputs: with act-order only g_idx, once read, says which of them the slice needs.
    """

    def __init__(self, shape: LinearShape, layout: GPTQLayout) -> None:
        """Allocate.

        Raises:
            QuantizationError: the slice or a part ends within a word.
        """
        super().__init__()
        self._shape = shape
        self._layout = layout
        for _, width in shape.parts:
            num_words(width, layout.bits, "outputs of a part")
        inputs, outputs = shape.in_features, shape.out_features
        groups = shape.whole_in_features // layout.group_size
        packed_inputs = num_words(inputs, layout.bits, "inputs of a slice")
        packed_outputs = num_words(outputs, layout.bits, "outputs")
        self.qweight = self._empty((packed_inputs, outputs), torch.int32)
        self.qzeros = self._empty((groups, packed_outputs), torch.int32)
        self.scales = self._empty((groups, outputs), getattr(torch, layout.scales_dtype))
        self.g_idx = self._empty((len(shape.parts), inputs), torch.int32) if layout.has_g_idx else None
        self.bias = self._empty((outputs,), shape.dtype) if shape.has_bias else None

    def _empty(self, size: tuple[int, ...], dtype: torch.dtype) -> nn.Buffer:
        return nn.Buffer(torch.empty(size, dtype=dtype, device=self._shape.device))

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """See LinearWeights."""
        rows, per_word = self._shape.rows(part), values_per_word(self._layout.bits)
        packed = slice(int(rows.start / per_word), int(rows.stop / per_word))
        scales = self.scales[:, rows]
        slots = [
            TensorSlot("qweight", self.qweight[:, rows], 1, 0, inputs_per_element=per_word),
            TensorSlot("qzeros", self.qzeros[:, packed], 1, outputs_per_element=per_word),
            TensorSlot("scales", scales, 1, store=store_finite(scales, "scales")),
        ]
        if self.g_idx is not None:
            g_idx = self.g_idx[self._shape.index(part)]
            slots.append(TensorSlot("g_idx", g_idx, input_dim=0, store=self._store_groups(g_idx)))
        if self.bias is not None:
            slots.append(TensorSlot("bias", self.bias[rows], 0))
        else:
            slots.append(unused_bias(rows.stop - rows.start, self._shape.dtype))
        return slots

    def _store_groups(self, g_idx: Tensor) -> Callable[[Tensor], None]:
        last = self.scales.shape[0] - 1

        def store(tensor: Tensor) -> None:
            low, high = int(tensor.min()), int(tensor.max())
            if low < 0 or high > last:
                raise QuantizationError(
                    f"inputs are assigned to groups from {low} to {high}; expected 0 to {last}, the groups that "
                    "scales and qzeros have: fetch the checkpoint again"
                )
            g_idx.copy_(tensor)

        return store

    def settle(self, notices: Notices) -> PackedWeights:
        """The tensors in their final meaning; told from them where the config may lie.

        Raises:
            QuantizationError: the parts' g_idx differ.
        """
        groups = self._groups()
        first, last = int(groups.min()), int(groups.max()) + 1
        scales: Tensor = self.scales
        qzeros: Tensor = self.qzeros
        if last - first < scales.shape[0]:
            scales, qzeros, groups = scales[first:last].clone(), qzeros[first:last].clone(), groups - first
        stored_zeros, offset = self._zero_points(qzeros, groups, notices)
        return PackedWeights(
            qweight=self.qweight,
            scales=scales,
            qzeros=stored_zeros,
            zero_offset=offset,
            groups=groups,
            bias=self.bias,
        )

    def _groups(self) -> Tensor:
        shape, group_size = self._shape, self._layout.group_size
        if self.g_idx is None:
            inputs = torch.arange(shape.in_features, device=shape.device)
            return (inputs + shape.input_start) // group_size
        if not torch.equal(self.g_idx, self.g_idx[:1].expand_as(self.g_idx)):
            raise QuantizationError(self._difference(self.g_idx))
        return self.g_idx[0].to(torch.int64)

    def _difference(self, g_idx: Tensor) -> str:
        """What is wrong with parts whose g_idx differ: act-order, which only reorders, or damage."""
        names = ", ".join(name for name, _ in self._shape.parts)
        ordered = g_idx.sort().values
        if torch.equal(ordered, ordered[:1].expand_as(ordered)):
            return (
                f"the g_idx of {names} differ, though desc_act is false; set desc_act to true in the "
                "quantization_config, so that they are kept apart"
            )
        return (
            f"the g_idx of {names} differ in how many inputs a group has, expected the same in all: "
            "fetch the checkpoint again"
        )

    def _zero_points(self, qzeros: Tensor, groups: Tensor, notices: Notices) -> tuple[Tensor | None, int]:
        """PackedWeights.qzeros and PackedWeights.zero_offset."""
        layout = self._layout
        bits, label = layout.bits, layout.zero_offset
        symmetric = symmetric_offset(uniform_zero(qzeros, bits), bits)
        if layout.sym and symmetric is not None:
            offset = symmetric
        else:
            offset = asymmetric_offset(self.qweight, qzeros, groups, bits, label)
        if offset != label:
            notices.warn(
                "zero points",
                f"the quantization_config labels the checkpoint {_LABELS[label]}, and its zero points are stored as "
                f"in {_LABELS[offset]}: read as what they are",
            )
        if offset == symmetric:
            return None, offset
        if (
            offset
            and bits in WORD_ONES
            and (layout.by_word or has_carries(self.qweight, qzeros, groups, bits))
        ):
            return add_to_words(qzeros, bits), 0
        return qzeros, offset


_LABELS = {offset: label for label, offset in ZERO_OFFSETS.items()}


def _consecutive(like: Tensor, size: int) -> Tensor:
    return torch.arange(len(like), device=like.device) // size
