"""What a linear layer asks of the method that stores and multiplies its weights, and what it tells it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

from quire.api.errors import CheckpointError


@dataclass(slots=True, frozen=True)
class TensorSlot:
    """Where one checkpoint tensor of a module goes.

    The loader looks for the tensor `<source>.<suffix>`, brings it into the target's orientation
    (swapping `output_dim` and `input_dim` of a "weight" that the checkpoint stores transposed, and
    applying the part's row permutation along `output_dim`), cuts out what this rank holds, checks the
    shape, and copies it into `target` or gives it to `store`.

    Attributes:
        suffix: the tensor's name after its module's: "weight", "qweight".
        target: filled in place; it has the shape that the checkpoint's tensor must have for this rank. With
            `store` only its shape and dtype count (a meta tensor will do).
        output_dim: the dimension of `target` that runs over output features, or None.
        input_dim: the dimension that runs over input features, or None.
        outputs_per_element: how many output features one element along `output_dim` stands for: 8 where
            eight 4-bit values are packed in an int32 along it, 32/3 for 3 bits.
        inputs_per_element: likewise along `input_dim`; the group size for a scale per group of inputs.
        store: takes the tensor instead of `target`: a CPU tensor, to be read before it returns and not kept.
        is_optional: whether a checkpoint may lack it.
    """

    suffix: str
    target: Tensor
    output_dim: int | None = None
    input_dim: int | None = None
    outputs_per_element: int | Fraction = 1
    inputs_per_element: int | Fraction = 1
    store: Callable[[Tensor], None] | None = None
    is_optional: bool = False


@dataclass(slots=True, frozen=True)
class WholeLinear:
    """The whole layer of which a rank holds a slice.

    Attributes:
        in_features: of the whole layer. input_start: the slice's first input.
        part_widths: of the whole layer. part_starts: the slice's first output row of each part.
    """

    in_features: int
    input_start: int
    part_widths: tuple[int, ...]
    part_starts: tuple[int, ...]


@dataclass(slots=True, frozen=True)
class LinearShape:
    """What a LinearMethod is asked for.

    Attributes:
        parts: name and width of each part, in the order of the output.
        whole: the layer that this is a slice of; None: it is the whole.
        multiply: the op `linear` for weights that stay as they are, where it is faster than torch; else None.
    """

    in_features: int
    parts: tuple[tuple[str, int], ...]
    has_bias: bool
    dtype: torch.dtype
    device: torch.device
    whole: WholeLinear | None = None
    multiply: Callable[..., Tensor] | None = None

    @property
    def out_features(self) -> int:
        """The sum of the parts' widths."""
        return sum(width for _, width in self.parts)

    @property
    def input_start(self) -> int:
        """The first input of this slice in the whole layer."""
        return 0 if self.whole is None else self.whole.input_start

    @property
    def whole_in_features(self) -> int:
        """The inputs of the whole layer."""
        return self.in_features if self.whole is None else self.whole.in_features

    def index(self, part: str | None) -> int:
        """The number of a part; None stands for the only one.

        Raises:
            CheckpointError: there is no such part (the model's weight map does not fit its layers).
        """
        names = [name for name, _ in self.parts]
        if part is None and len(names) == 1:
            return 0
        if part not in names:
            parts = ", ".join(names)
            raise CheckpointError(f"the weight map names part {part!r}; the layer's parts are {parts}")
        return names.index(part)

    def rows(self, part: str | None) -> slice:
        """The output rows of a part (None: the only one) in this slice; CheckpointError: no such part."""
        index = self.index(part)
        start = sum(width for _, width in self.parts[:index])
        return slice(start, start + self.parts[index][1])

    def whole_width(self, part: str | None) -> int:
        """The output features of the whole part."""
        index = self.index(part)
        return self.parts[index][1] if self.whole is None else self.whole.part_widths[index]

    def whole_rows(self, part: str | None) -> slice:
        """The rows of the whole part that this slice holds."""
        index = self.index(part)
        start = 0 if self.whole is None else self.whole.part_starts[index]
        return slice(start, start + self.parts[index][1])

    def select(self, first: int, last: int) -> LinearShape:
        """The layer of the parts from `first` to `last`, the latter not included."""
        whole = self.whole
        if whole is not None:
            whole = WholeLinear(
                whole.in_features,
                whole.input_start,
                whole.part_widths[first:last],
                whole.part_starts[first:last],
            )
        return replace(self, parts=self.parts[first:last], whole=whole)


class LinearWeights(Protocol):
    """One layer's weights as its LinearMethod keeps them; an `nn.Module`.

    What it holds after processing is registered as parameters or buffers, so that its bytes can be counted.
    """

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """The checkpoint tensors that fill a part."""
        ...

    def process_after_loading(self) -> None:
        """Bring the loaded tensors into the form that `product` multiplies with; called once.

        Called as soon as the layer's tensors are there, before those of later layers are read, so that
        what is freed here is never there twice.
        """
        ...

    def product(self) -> Callable[[Tensor], Tensor]:
        """The layer's function, [T, in_features] to [T, out_features]; asked for after processing."""
        ...


class LinearMethod(Protocol):
    """How linear layers store and multiply their weights: 16-bit here, quantized in plugins.

    Parts of a layer are fused where their methods are equal, so methods define `==` (frozen dataclasses do).

    Attributes:
        name: for the start-up summary. op: the name of the op that multiplies, or "".
        fuses: whether equal parts may be kept in one; False where each has an order of inputs of its own.
    """

    @property
    def name(self) -> str:
        """For the start-up summary."""
        ...

    @property
    def op(self) -> str:
        """The name of the op that multiplies, or ""."""
        ...

    @property
    def fuses(self) -> bool:
        """Whether parts with equal methods may be kept in one."""
        ...

    def create(self, shape: LinearShape) -> LinearWeights:
        """Uninitialized weights of one layer."""
        ...
