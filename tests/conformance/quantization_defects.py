"""Quantization methods that are wrong, each in one way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import naive_quantization as naive
import torch
from naive_quantization import NaiveMethod, NaiveWeights
from torch import Tensor, nn

from quire.api.quantization import LayerChoice, StoredModule
from quire.nn.linear_method import LinearShape, TensorSlot


def method(weights: Callable[[LinearShape], nn.Module]) -> type[NaiveMethod]:
    """A method whose layers keep these weights."""
    return type(weights.__name__ + "Method", (NaiveMethod,), {"weights": weights})


@method
class SwapsGroups(NaiveWeights):
    """Takes the scale of a neighbouring group."""

    def process_after_loading(self) -> None:
        self.scales = self.scales.roll(1, dims=1)


@method
class ForgetsBias(NaiveWeights):
    def multiply(self, x: Tensor) -> Tensor:
        bias, self.bias = self.bias, None
        result = super().multiply(x)
        self.bias = bias
        return result


@method
class WritesInput(NaiveWeights):
    def multiply(self, x: Tensor) -> Tensor:
        result = super().multiply(x)
        return result if x.numel() == 0 else result + 0 * x.mul_(2).sum()


@method
class FillsFirstPart(NaiveWeights):
    """Every part goes to the first rows."""

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        slots = super().tensor_slots(part)
        return [
            TensorSlot(
                slot.suffix,
                getattr(self, slot.suffix)[: slot.target.shape[0]],
                0,
                slot.input_dim,
                inputs_per_element=slot.inputs_per_element,
            )
            for slot in slots
        ]


@method
class KeepsFloats(NaiveWeights):
    """Dequantizes once and keeps the result."""

    def process_after_loading(self) -> None:
        grouped = self.codes.double().view(self.shape.out_features, -1, naive.GROUP)
        self.register_buffer("plain", (grouped * self.scales.double()[..., None]).flatten(1))

    def multiply(self, x: Tensor) -> Tensor:
        product = x.double() @ self.plain.t()
        return (product if self.bias is None else product + self.bias.double()).to(x.dtype)


@method
class HidesFloats(KeepsFloats.weights):  # type: ignore[name-defined]  # a class held by a class
    """The same, out of sight of the counting; and drops what it had registered."""

    def process_after_loading(self) -> None:
        super().process_after_loading()
        self.__dict__["hidden"] = self.plain
        del self.plain, self.codes, self.scales

    def multiply(self, x: Tensor) -> Tensor:
        product = x.double() @ self.__dict__["hidden"].t()
        return (product if self.bias is None else product + self.bias.double()).to(x.dtype)


@method
class IgnoresOutputSlices(NaiveWeights):
    """Does not say which dimension runs over the outputs of its scales."""

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        codes, scales, *rest = super().tensor_slots(part)
        narrow = TensorSlot("scales", scales.target, None, 1, inputs_per_element=naive.GROUP)
        return [codes, narrow, *rest]


@method
class IgnoresInputSlices(NaiveWeights):
    """Asks for scales as if the slice were the whole."""

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        codes, scales, *rest = super().tensor_slots(part)

        def store(tensor: Tensor) -> None:
            scales.target.copy_(tensor[:, : scales.target.shape[1]])

        whole = torch.empty(
            scales.target.shape[0], self.shape.whole_in_features // naive.GROUP, device="meta"
        )
        return [codes, TensorSlot("scales", whole, 0, None, store=store), *rest]


@method
class MixesRows(NaiveWeights):
    """One scale of the inputs for the whole batch."""

    def multiply(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return super().multiply(x)
        scale = x.abs().max()
        return super().multiply(x / scale) * scale


@method
class GuessesScales(NaiveWeights):
    """Loads without scales: they are one where the checkpoint has none."""

    def __init__(self, shape: LinearShape) -> None:
        super().__init__(shape)
        self.scales.fill_(1.0)

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        codes, scales, *rest = super().tensor_slots(part)
        lax = TensorSlot("scales", scales.target, 0, 1, inputs_per_element=naive.GROUP, is_optional=True)
        return [codes, lax, *rest]


@method
class DependsOnBatch(NaiveWeights):
    """Rounds the inputs of single rows only."""

    def multiply(self, x: Tensor) -> Tensor:
        return super().multiply(x.bfloat16().to(x.dtype) if x.shape[0] == 1 else x)


class QuantizesTiedHead(NaiveMethod):
    def choose(self, module: StoredModule) -> LayerChoice:
        return LayerChoice(naive.NaiveLinear()) if module.is_tied else super().choose(module)


class RefusesPlainModules(NaiveMethod):
    """Quantized throughout, it thinks."""

    def choose(self, module: StoredModule) -> LayerChoice:
        return LayerChoice(None) if module.is_tied else LayerChoice(naive.NaiveLinear())


class UnequalMethods(NaiveMethod):
    def choose(self, module: StoredModule) -> LayerChoice:
        choice = super().choose(module)
        if choice.method is None:
            return choice
        return LayerChoice(naive.NaiveLinear(lambda shape: NaiveWeights(shape)))
