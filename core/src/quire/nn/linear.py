"""Linear layers of named parts, the methods that store and multiply their weights, and the LM head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quire.api.errors import CheckpointError, ShapeError

_PACKED_ROWS_HINT = 128
"""Rows that oneDNN lays a prepacked weight out for; within noise of the best of 1, 16 and 128 up to 64 rows."""


@dataclass(slots=True, frozen=True)
class TensorSlot:
    """Where one checkpoint tensor of a module goes.

    The loader looks for the tensor `<source>.<suffix>`, brings it into the target's orientation
    (swapping `output_dim` and `input_dim` where the checkpoint stores them transposed, and applying
    the part's row permutation along `output_dim`), checks the shape, and copies it.

    Attributes:
        suffix: the tensor's name after its module's: "weight", "bias".
        target: a view of a parameter with the shape that the checkpoint's tensor must have; filled in place.
        output_dim: the dimension of `target` that runs over output features, or None.
        input_dim: the dimension that runs over input features, or None.
    """

    suffix: str
    target: Tensor
    output_dim: int | None = None
    input_dim: int | None = None


@dataclass(slots=True, frozen=True)
class LinearShape:
    """What a LinearMethod is asked for.

    Attributes:
        parts: name and width of each part, in the order of the output.
    """

    in_features: int
    parts: tuple[tuple[str, int], ...]
    has_bias: bool
    dtype: torch.dtype
    device: torch.device

    @property
    def out_features(self) -> int:
        """The sum of the parts' widths."""
        return sum(width for _, width in self.parts)

    def rows(self, part: str | None) -> slice:
        """The output rows of a part; None stands for all of a layer with a single part.

        Raises:
            CheckpointError: there is no such part (the model's weight map does not fit its layers).
        """
        names = [name for name, _ in self.parts]
        if part is None and len(names) == 1:
            return slice(0, self.out_features)
        if part not in names:
            parts = ", ".join(names)
            raise CheckpointError(f"the weight map names part {part!r}; the layer's parts are {parts}")
        index = names.index(part)
        start = sum(width for _, width in self.parts[:index])
        return slice(start, start + self.parts[index][1])


class LinearWeights(Protocol):
    """One layer's weights as its LinearMethod keeps them; an `nn.Module`."""

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """The checkpoint tensors that fill a part."""
        ...

    def process_after_loading(self) -> None:
        """Bring the loaded tensors into the form that `product` multiplies with; called once."""
        ...

    def product(self) -> Callable[[Tensor], Tensor]:
        """The layer's function, [T, in_features] to [T, out_features]; asked for after processing."""
        ...


class LinearMethod(Protocol):
    """How linear layers store and multiply their weights: 16-bit here, quantized in plugins."""

    name: str

    def create(self, shape: LinearShape) -> LinearWeights:
        """Uninitialized weights of one layer."""
        ...


class UnquantizedWeights(nn.Module):
    """A weight [out_features, in_features] and maybe a bias, in the model's dtype.

    On a CPU that multiplies bfloat16 natively the weight is laid out for oneDNN after loading and
    the plain copy is dropped: 1.2 to 1.8 times the speed of F.linear up to 256 rows, about equal above.
    float32 stays plain: prepacked it is slower at one row and from 512 rows. float16 is multiplied as
    it is, which CPUs do slowly (about 50 GFLOP/s): products in bfloat16 would be fast and wrong.
    """

    def __init__(self, shape: LinearShape) -> None:
        super().__init__()
        self._shape = shape
        size = (shape.out_features, shape.in_features)
        self.weight: nn.Parameter | None = _empty_parameter(size, shape)
        self.bias = _empty_parameter(size[:1], shape) if shape.has_bias else None
        self._product: Callable[[Tensor], Tensor] = _not_loaded

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """See LinearWeights; before processing only."""
        rows = self._shape.rows(part)
        slots = []
        if self.weight is not None:
            slots.append(TensorSlot("weight", self.weight.data[rows], output_dim=0, input_dim=1))
        if self.bias is not None:
            slots.append(TensorSlot("bias", self.bias.data[rows], output_dim=0))
        return slots

    def process_after_loading(self) -> None:
        """Prepack where that is faster, and free the plain weight."""
        if self.weight is None:
            return
        self._product = make_product(self.weight.data, None if self.bias is None else self.bias.data)
        if is_prepacked(self.weight.dtype, self.weight.device):
            self.weight = None

    def product(self) -> Callable[[Tensor], Tensor]:
        """See LinearWeights."""
        return self._product


class UnquantizedMethod:
    """Weights in the model's dtype; see UnquantizedWeights."""

    name = "unquantized"

    def create(self, shape: LinearShape) -> UnquantizedWeights:
        """See LinearMethod."""
        return UnquantizedWeights(shape)


class Linear(nn.Module):
    """A linear layer whose output is named parts side by side; see BuildContext.linear.

    Call it with [T, in_features]; it gives [T, sum of widths], a new tensor, in the input's dtype.
    It can be called after `process_after_loading`.
    """

    def __init__(self, shape: LinearShape, method: LinearMethod) -> None:
        super().__init__()
        self.shape = shape
        self.weights = method.create(shape)
        self._product: Callable[[Tensor], Tensor] = _not_loaded

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """The checkpoint tensors that fill a part (None: the only part)."""
        return self.weights.tensor_slots(part)

    def process_after_loading(self) -> None:
        """Make the layer callable; called once, when its tensors are filled."""
        self.weights.process_after_loading()
        self._product = self.weights.product()

    def forward(self, x: Tensor) -> Tensor:
        """[T, in_features] to [T, out_features]."""
        return self._product(x)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        parts = ", ".join(f"{name}={width}" for name, width in self.shape.parts)
        return f"in_features={self.shape.in_features}, {parts}, bias={self.shape.has_bias}"


class LMHead(nn.Module):
    """The output projection, [L, in_features] to [L, vocab_size].

    Untied it loads like a linear with a single part. Tied, it takes the embedding's weight when it
    is processed, and a model's weight map does not name it. Where weights are prepacked (bfloat16 on
    a CPU) the packed copy is separate from the embedding's: one more time
    `vocab_size * in_features * 2` bytes (57 MB at 49152 x 576); elsewhere the weight is shared.
    """

    def __init__(self, shape: LinearShape, method: LinearMethod, tied_to: nn.Module | None = None) -> None:
        """Build the head.

        Args:
            shape: with a single part.
            method: how an untied head keeps its weight.
            tied_to: the embedding whose `weight` [vocab_size, in_features] is used, or None.

        Raises:
            ShapeError: a tied head with a bias.
        """
        super().__init__()
        if tied_to is not None and shape.has_bias:
            raise ShapeError("a tied LM head has no bias: drop `bias` or `tied_to`")
        self.shape = shape
        self.weights = method.create(shape) if tied_to is None else None
        self._embedding = (tied_to,)  # in a tuple, so that it is not registered as a submodule
        self._product: Callable[[Tensor], Tensor] = _not_loaded

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """The checkpoint tensors that fill it: none when tied."""
        return () if self.weights is None else self.weights.tensor_slots(part)

    def process_after_loading(self) -> None:
        """Make the head callable; the embedding that it is tied to must be loaded."""
        if self.weights is not None:
            self.weights.process_after_loading()
            self._product = self.weights.product()
            return
        weight = getattr(self._embedding[0], "weight", None)
        expected = (self.shape.out_features, self.shape.in_features)
        if not isinstance(weight, Tensor) or tuple(weight.shape) != expected:
            found = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
            raise ShapeError(f"the LM head is tied to a weight {found}; it needs {expected}")
        self._product = make_product(weight.data, None)

    def forward(self, x: Tensor) -> Tensor:
        """[L, in_features] to [L, vocab_size]."""
        return self._product(x)


def is_prepacked(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether unquantized weights are laid out for oneDNN: bfloat16, on a CPU that has its instructions."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def make_product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The fastest function x -> x @ weight.T + bias; prepacks a copy of `weight` where that helps.

    Args:
        weight: [out_features, in_features]; not kept when a packed copy is made.
        bias: [out_features] or None.
    """
    if not is_prepacked(weight.dtype, weight.device):
        return lambda x: F.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight.default(weight, _PACKED_ROWS_HINT)
    multiply = torch.ops.mkldnn._linear_pointwise.default
    scalars: list[float] = []

    def product(x: Tensor) -> Tensor:
        result: Tensor = multiply(x, packed, bias, "none", scalars, "")
        return result

    return product


def _not_loaded(x: Tensor) -> Tensor:
    raise RuntimeError("the layer was called before process_after_loading")


def _empty_parameter(size: tuple[int, ...], shape: LinearShape) -> nn.Parameter:
    return nn.Parameter(torch.empty(size, dtype=shape.dtype, device=shape.device), requires_grad=False)
