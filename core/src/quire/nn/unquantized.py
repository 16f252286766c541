"""Weights in the model's dtype, laid out for the machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quire.nn.linear_method import LinearShape, TensorSlot
from quire.ops.linear import pack_panels

_EXACT_ROWS = 16
_PACKED_ROWS_HINT = 128
"""Rows that oneDNN lays a prepacked weight out for; within noise of the best of 1, 16 and 128 up to 64 rows."""


class UnquantizedWeights(nn.Module):
    """A weight [out_features, in_features] and maybe a bias, in the model's dtype.

    Where a plugin serves the op `linear` the weight is laid out in its panels after loading, and the plain
    copy is dropped. Without, on a CPU that multiplies bfloat16 natively, it is laid out for oneDNN: 1.2 to
    1.8 times the speed of F.linear up to 256 rows, about equal above.
    float32 stays plain: prepacked it is slower at one row and from 512 rows. float16 is multiplied as
    it is, which CPUs do slowly (about 50 GFLOP/s): products in bfloat16 would be fast and wrong.
    """

    def __init__(self, shape: LinearShape) -> None:
        super().__init__()
        self._shape = shape
        size = (shape.out_features, shape.in_features)
        self.weight: nn.Parameter | None = _empty_parameter(size, shape)
        self.bias = _empty_parameter(size[:1], shape) if shape.has_bias else None
        self._product: Callable[[Tensor], Tensor] | None = None

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
        bias = None if self.bias is None else self.bias.data
        self._product, is_copied = make_product(self.weight.data, bias, self._shape.multiply)
        if is_copied:
            self.weight = None

    def product(self) -> Callable[[Tensor], Tensor]:
        """See LinearWeights."""
        if self._product is None:
            raise RuntimeError("the product was asked for before process_after_loading")
        return self._product


@dataclass(slots=True, frozen=True)
class UnquantizedMethod:
    """Weights in the model's dtype; see UnquantizedWeights."""

    name: ClassVar[str] = "unquantized"
    op: ClassVar[str] = ""
    fuses: ClassVar[bool] = True

    def create(self, shape: LinearShape) -> UnquantizedWeights:
        """See LinearMethod."""
        return UnquantizedWeights(shape)


def is_prepacked(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch lays unquantized weights out: bfloat16, on a CPU that has oneDNN's instructions."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def make_product(
    weight: Tensor, bias: Tensor | None, multiply: Callable[..., Tensor] | None = None
) -> tuple[Callable[[Tensor], Tensor], bool]:
    """The fastest function x -> x @ weight.T + bias, and whether it has a copy of `weight`, which it does not keep.

    Args:
        weight: [out_features, in_features].
        bias: [out_features] or None.
        multiply: the op `linear`, if it shall serve.
    """
    size, inputs = weight.shape
    if multiply is not None and inputs % 2 == 0:
        panels = pack_panels(weight)
        return lambda x: multiply(x, panels, bias, size), True
    if is_prepacked(weight.dtype, weight.device):
        return _prepacked_product(weight, bias), True
    return lambda x: F.linear(x, weight, bias), False


def _prepacked_product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight.default(weight, _PACKED_ROWS_HINT)
    multiply = torch.ops.mkldnn._linear_pointwise.default
    scalars: list[float] = []

    def product(x: Tensor) -> Tensor:
        num_rows = x.shape[0]
        more = padded_rows(num_rows) - num_rows
        if more:
            padded = x.new_empty((num_rows + more, x.shape[1]))
            padded[:num_rows] = x
            padded[num_rows:] = 0
            x = padded
        result: Tensor = multiply(x, packed, bias, "none", scalars, "")
        return result[:num_rows] if more else result

    return product


def padded_rows(num_rows: int) -> int:
    """How many rows a product of packed weights is computed for: exact up to 16, then eights, or an eighth more.

    oneDNN compiles for each number of rows that it has not seen: 2 to 10 ms and about 1 MB for each weight shape.
    Batches of a server have any number; with this, some 60 of up to 2048 are left.
    """
    if num_rows <= _EXACT_ROWS:
        return num_rows
    step = max(8, 1 << ((num_rows - 1).bit_length() - 4))
    return -(-num_rows // step) * step


def _empty_parameter(size: tuple[int, ...], shape: LinearShape) -> nn.Parameter:
    return nn.Parameter(torch.empty(size, dtype=shape.dtype, device=shape.device), requires_grad=False)
