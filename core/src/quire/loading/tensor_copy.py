"""One checkpoint tensor on its way into one slot: its rows, its orientation, and the slice of a rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from quire.api.errors import CheckpointError
from quire.api.specs import WeightPart
from quire.loading.checkpoint import Checkpoint
from quire.loading.reader_checkpoint import ReaderCheckpoint
from quire.nn.linear_method import LinearShape, TensorSlot

TensorSource = Checkpoint | ReaderCheckpoint


@dataclass(slots=True, frozen=True)
class TensorCopy:
    """One checkpoint tensor, or some of its rows and columns, into one slot.

    Attributes:
        tensor: its name. path: of the module that it fills. shape: of that module, if it is a linear.
        destination: what messages call the module and part.
    """

    tensor: str
    slot: TensorSlot
    part: WeightPart
    path: str
    destination: str
    shape: LinearShape | None = None

    @property
    def is_swapped(self) -> bool:
        """Whether the checkpoint stores this matrix transposed."""
        slot = self.slot
        is_matrix = slot.output_dim is not None and slot.input_dim is not None
        return self.part.transposed and slot.suffix == "weight" and is_matrix

    @property
    def row_dim(self) -> int | None:
        """The checkpoint's dimension of output features, or None."""
        return self.slot.input_dim if self.is_swapped else self.slot.output_dim

    def whole_rows(self) -> Sequence[int]:
        """The checkpoint's rows (features) that the whole part takes."""
        if self.part.row_permutation is not None:
            return self.part.row_permutation
        if self.shape is not None and self.shape.whole is not None:
            return range(self.shape.whole.part_widths[self.shape.index(self.part.part)])
        return range(self._target_rows())

    def rows(self) -> Sequence[int]:
        """The checkpoint's rows (features) that this rank takes of them."""
        whole = self.whole_rows()
        return whole if self.shape is None else whole[self.shape.whole_rows(self.part.part)]

    def whole_inputs(self) -> int:
        """The elements of the checkpoint's tensor along its inputs."""
        slot = self.slot
        if self.shape is None or self.shape.whole is None:
            return int(slot.target.shape[slot.input_dim or 0])
        return self.elements(self.shape.whole_in_features, slot.inputs_per_element)

    def elements(self, features: int, per_element: int | Fraction) -> int:
        """How many elements stand for that many features; CheckpointError where they do not end with one."""
        count = Fraction(features) / per_element
        if count.denominator != 1:
            raise CheckpointError(
                f"{self.destination} takes {features} features of tensor {self.tensor!r}, whose elements hold "
                f"{per_element} each: a multiple is needed"
            )
        return int(count)

    def read(self, checkpoint: TensorSource) -> Tensor:
        """The tensor in the target's orientation, cut to what the slot takes; a view where that can be."""
        slot = self.slot
        source = checkpoint.get(self.tensor)
        if self.is_swapped:
            source = source.t()
        if slot.output_dim is not None:
            source = self._take_rows(source, slot.output_dim)
        if slot.input_dim is not None and self.shape is not None and self.shape.whole is not None:
            start = self.elements(self.shape.input_start, slot.inputs_per_element)
            source = source.narrow(slot.input_dim, start, slot.target.shape[slot.input_dim])
        return source

    def _target_rows(self) -> int:
        slot = self.slot
        return int(slot.target.shape[slot.output_dim or 0] * Fraction(slot.outputs_per_element))

    def _take_rows(self, source: Tensor, dim: int) -> Tensor:
        """Rows in their order: runs of them by slicing; others one by one, in units of what an element holds."""
        rows, per = self.rows(), Fraction(self.slot.outputs_per_element)
        if not rows:
            return source.narrow(dim, 0, 0)
        if rows == range(rows[0], rows[0] + len(rows)) or tuple(rows) == tuple(
            range(rows[0], rows[0] + len(rows))
        ):
            start = self.elements(rows[0], per)
            return source.narrow(dim, start, self.elements(len(rows), per))
        step, width = per.numerator, per.denominator
        blocks = [rows[at : at + step] for at in range(0, len(rows), step)]
        whole = all(
            block[0] % step == 0 and list(block) == list(range(block[0], block[0] + step)) for block in blocks
        )
        if not whole:
            raise CheckpointError(
                f"{self.destination} takes rows of tensor {self.tensor!r} in another order, and they are packed "
                f"{step} together: such a checkpoint cannot be loaded into this architecture"
            )
        index = [block[0] // step * width + offset for block in blocks for offset in range(width)]
        return source.index_select(dim, torch.tensor(index))
