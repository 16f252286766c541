"""Weights as int8 codes with a scale for each output and group of inputs: w = code * scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quire.api.errors import QuantizationError
from quire.api.quantization import LayerChoice, QuantizationContext, StoredModule
from quire.nn.linear_method import LinearShape, TensorSlot

_CHUNK_ROWS = 256
"""Outputs that are dequantized at a time: a 16-bit copy of a whole layer is what quantization avoids."""


class MyQuantization:
    """Chooses how each module of a checkpoint is kept; see `quire.api.quantization.QuantizationMethod`."""

    def __init__(self, context: QuantizationContext) -> None:
        config = context.request.config or {}
        group_size = config.get("group_size", 32)
        if not isinstance(group_size, int) or group_size < 1:
            raise QuantizationError(f"group_size is {group_size!r}; it must be a positive integer")
        self._group_size = group_size

    def choose(self, module: StoredModule) -> LayerChoice:
        """16 bits where the checkpoint holds a plain weight, else codes and scales."""
        if module.is_tied:
            return LayerChoice(None, "tied to the embedding, which is not quantized")
        if "codes" not in module.tensors and "weight" in module.tensors:
            return LayerChoice(None, "not quantized in the checkpoint")
        if module.in_features % self._group_size:
            raise QuantizationError(
                f"{module.in_features} inputs are not a multiple of group_size={self._group_size}: "
                "quantize with a group size that divides them"
            )
        return LayerChoice(MyQuantizationLinear(self._group_size))


@dataclass(frozen=True)
class MyQuantizationLinear:
    """How one layer is kept; equal values fuse, so this is a value."""

    group_size: int
    name: ClassVar[str] = "my-quantization"
    op: ClassVar[str] = ""
    fuses: ClassVar[bool] = True

    def create(self, shape: LinearShape) -> MyQuantizationWeights:
        """Uninitialized weights."""
        return MyQuantizationWeights(shape, self.group_size)


class MyQuantizationWeights(nn.Module):
    """One layer's tensors; see `quire.nn.linear_method.LinearWeights`."""

    codes: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, shape: LinearShape, group_size: int) -> None:
        super().__init__()
        self._shape, self._group_size = shape, group_size
        outputs, device = shape.out_features, shape.device
        codes = torch.empty(outputs, shape.in_features, dtype=torch.int8, device=device)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", torch.empty(outputs, shape.in_features // group_size, device=device))
        bias = torch.empty(outputs, dtype=shape.dtype, device=device) if shape.has_bias else None
        self.register_buffer("bias", bias)

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """Where the part's tensors go; the dimensions let core cut them for a rank."""
        rows, size = self._shape.rows(part), self._group_size
        slots = [
            TensorSlot("codes", self.codes[rows], output_dim=0, input_dim=1),
            TensorSlot("scales", self.scales[rows], output_dim=0, input_dim=1, inputs_per_element=size),
        ]
        if self.bias is not None:
            slots.append(TensorSlot("bias", self.bias[rows], output_dim=0))
        return slots

    def process_after_loading(self) -> None:
        """Nothing to bring into another form."""

    def product(self) -> Callable[[Tensor], Tensor]:
        """[T, K] to [T, N]."""
        return self._multiply

    def _multiply(self, x: Tensor) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        values, out = x.to(wide), x.new_empty(x.shape[0], self._shape.out_features)
        for start in range(0, self._shape.out_features, _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            codes = self.codes[rows].to(wide).view(-1, self.scales.shape[1], self._group_size)
            weight = (codes * self.scales[rows].to(wide)[..., None]).flatten(1)
            out[:, rows] = F.linear(values, weight, None if self.bias is None else self.bias[rows].to(wide))
        return out
