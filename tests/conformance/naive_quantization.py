"""A quantization method that is easily seen to be right: int8 codes and a scale per output and group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from quire.api.quantization import LayerChoice, QuantizationContext, StoredModule
from quire.api.specs import QuantizationSpec
from quire.nn.linear_method import LinearShape, TensorSlot
from quire.testing import PackedLinear

GROUP = 32
CONFIG = {"quant_method": "naive"}


def pack(weight: Tensor) -> PackedLinear:
    size, columns = weight.shape
    grouped = weight.double().view(size, columns // GROUP, GROUP)
    scales = (grouped.abs().amax(-1) / 127).float()
    codes = (grouped / scales.double()[..., None]).round()
    dequantized = (codes * scales.double()[..., None]).view(size, columns)
    return PackedLinear({"codes": codes.view(size, columns).to(torch.int8), "scales": scales}, dequantized)


class NaiveWeights(nn.Module):
    def __init__(self, shape: LinearShape) -> None:
        super().__init__()
        self.shape = shape
        codes = torch.empty(shape.out_features, shape.in_features, dtype=torch.int8)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", torch.empty(shape.out_features, shape.in_features // GROUP))
        bias = torch.empty(shape.out_features, dtype=shape.dtype) if shape.has_bias else None
        self.register_buffer("bias", bias)

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        rows = self.shape.rows(part)
        slots = [
            TensorSlot("codes", self.codes[rows], output_dim=0, input_dim=1),
            TensorSlot("scales", self.scales[rows], output_dim=0, input_dim=1, inputs_per_element=GROUP),
        ]
        if self.bias is not None:
            slots.append(TensorSlot("bias", self.bias[rows], output_dim=0))
        return slots

    def process_after_loading(self) -> None:
        pass

    def product(self) -> Callable[[Tensor], Tensor]:
        return self.multiply

    def multiply(self, x: Tensor) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        grouped = self.codes.to(wide).view(self.shape.out_features, -1, GROUP)
        weight = (grouped * self.scales.to(wide)[..., None]).flatten(1)
        product = x.to(wide) @ weight.t()
        return (product if self.bias is None else product + self.bias.to(wide)).to(x.dtype)


@dataclass(frozen=True)
class NaiveLinear:
    name: ClassVar[str] = "naive"
    op: ClassVar[str] = ""
    fuses: ClassVar[bool] = True

    weights: Callable[[LinearShape], nn.Module] = NaiveWeights

    def create(self, shape: LinearShape) -> nn.Module:
        return self.weights(shape)


class NaiveMethod:
    """The method; `weights` is what its layers keep."""

    weights: Callable[[LinearShape], nn.Module] = NaiveWeights

    def __init__(self, context: QuantizationContext) -> None:
        self.context = context

    def choose(self, module: StoredModule) -> LayerChoice:
        if module.is_tied:
            return LayerChoice(None, "tied to the embedding")
        if "weight" in module.tensors:
            return LayerChoice(None, "not quantized in the checkpoint")
        return LayerChoice(NaiveLinear(type(self).weights))


def spec(factory: Callable[[QuantizationContext], object] = NaiveMethod) -> QuantizationSpec:
    return QuantizationSpec("naive", factory, quant_methods=("naive",))
