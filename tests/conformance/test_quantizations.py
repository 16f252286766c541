"""The suite of quantization methods over every method that is shipped, in each layout of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

import ct_layers
import gptq_layers
from awq_layers import AwqLayout, awq_tensors, pack_columns
from ct_layers import TENSOR, TOKEN, Scheme, float_inputs, round_inputs
from gptq_layers import Layout
from quire.api.batch import DTypeName
from quire.testing import PackedLinear, QuantizationConformance
from quire.testing.quantization_base import Config
from quire_quantization.awq import marlin_plugin as awq_marlin
from quire_quantization.awq import plugin as awq
from quire_quantization.compressed_tensors import plugin as compressed_tensors
from quire_quantization.gptq import marlin_plugin as gptq_marlin
from quire_quantization.gptq import plugin as gptq
from quire_quantization.on_the_fly import int4_plugin, int8_plugin
from quire_quantization.on_the_fly.options import Int4Options
from quire_quantization.squeezellm import plugin as squeezellm

ROUNDED_INPUTS: Mapping[DTypeName, float] = {"float64": 1e-6, "float32": 4e-3, "bfloat16": 2e-2}
"""The largest input of a row is divided to 127.5 of either sign, which float32 may round another way."""

BY_LABEL = {spec.name: spec for spec in compressed_tensors.quire_register_quantizations()}


def order_of(weight: Tensor) -> int:
    """A seed that differs from weight to weight: each has an order of its own."""
    return crc32(weight.numpy().tobytes())


class AwqConformance(QuantizationConformance):
    layouts: ClassVar[Mapping[str, AwqLayout]] = {
        name: AwqLayout(name.partition(" ")[0], size)
        for name, size in (("gemm", 64), ("gemv per channel", -1), ("gemv_fast", 64))
    }
    ops = tuple(awq.quire_register_ops())
    configs = {name: layout.config() for name, layout in layouts.items()}
    hidden_size = 128

    def pack(self, weight: Tensor, config: Config) -> PackedLinear:
        layout = next(layout for layout in self.layouts.values() if layout.config() == config)
        outputs, inputs = weight.shape
        size = inputs if layout.group_size == -1 else layout.group_size
        groups = np.arange(inputs) // size
        grouped = weight.double().view(outputs, -1, size)
        lowest, highest = grouped.amin(-1), grouped.amax(-1)
        scales = ((highest - lowest) / 15).half()
        zeros = (-lowest / scales.double()).round().clamp(0, 15)
        steps = weight.double() / scales.double()[:, groups]
        integers = (steps + zeros[:, groups]).round().clamp(0, 15)
        tensors = awq_tensors(layout, integers.long().numpy(), zeros.long().numpy(), scales)
        offsets = -zeros * scales.double()
        if layout.version == "gemv_fast":
            offsets = tensors["qzeros"].double().t()
        return PackedLinear(tensors, integers * scales.double()[:, groups] + offsets[:, groups])


class TestAwq(AwqConformance):
    spec = awq.quire_register_quantizations()[0]


class TestAwqMarlin(AwqConformance):
    spec = awq_marlin.quire_register_quantizations()[0]


class GptqConformance(QuantizationConformance):
    layouts: ClassVar[Mapping[str, Layout]]
    ops = tuple(gptq.quire_register_ops())
    hidden_size = 128

    def pack(self, weight: Tensor, config: Config) -> PackedLinear:
        layout = next(layout for layout in self.layouts.values() if layout.config() == config)
        layer = gptq_layers.round_weight(layout, weight, order_of(weight))
        return PackedLinear(layer.tensors, layer.weight)


class TestGptq(GptqConformance):
    spec = gptq.quire_register_quantizations()[0]
    layouts = {
        "2 bits": Layout(2),
        "3 bits": Layout(3),
        "4 bits": Layout(4),
        "4 bits with zero points, v2": Layout(4, 64, sym=False, zero_offset=0),
        "8 bits per channel": Layout(8, -1),
    }
    configs = {name: layout.config() for name, layout in layouts.items()}
    optional_tensors = ("g_idx",)


class TestGptqMarlin(GptqConformance):
    spec = gptq_marlin.quire_register_quantizations()[0]
    layouts = {
        "4 bits": Layout(4),
        "4 bits with zero points": Layout(4, 64, sym=False),
        "8 bits with zero points, v2": Layout(8, sym=False, zero_offset=0),
        "8 bits per channel": Layout(8, -1),
    }
    configs = {name: layout.config() for name, layout in layouts.items()}
    optional_tensors = ("g_idx",)


class TestGptqActOrder(GptqConformance):
    spec = gptq.quire_register_quantizations()[0]
    layouts = {
        "3 bits, v2": Layout(3, sym=False, desc_act=True, zero_offset=0),
        "4 bits": Layout(4, desc_act=True),
    }
    configs = {name: layout.config() for name, layout in layouts.items()}


class TestGptqMarlinActOrder(GptqConformance):
    spec = gptq_marlin.quire_register_quantizations()[0]
    layouts = {
        "4 bits": Layout(4, desc_act=True),
        "4 bits with zero points": Layout(4, 64, sym=False, desc_act=True),
        "8 bits": Layout(8, desc_act=True),
    }
    configs = {name: layout.config() for name, layout in layouts.items()}


class CompressedTensorsConformance(QuantizationConformance):
    spec = BY_LABEL["compressed-tensors"]
    schemes: ClassVar[Mapping[str, Scheme]]
    ops = tuple(compressed_tensors.quire_register_ops())
    hidden_size = 128
    optional_tensors = ("weight_shape", "weight_g_idx")

    def scheme(self, config: Config) -> Scheme:
        return next(scheme for scheme in self.schemes.values() if scheme.config() == config)

    def pack(self, weight: Tensor, config: Config) -> PackedLinear:
        layer = ct_layers.round_weight(self.scheme(config), weight, order_of(weight))
        return PackedLinear(layer.tensors, layer.weight)


class TestIntegerWeights(CompressedTensorsConformance):
    schemes = {
        "W4A16": Scheme(4),
        "W4A16 with zero points": Scheme(4, group_size=64, symmetric=False),
        "W4A16 per channel": Scheme(4, "channel"),
        "W4A16 with act-order": Scheme(4, actorder="group"),
        "W8A16 per channel": Scheme(8, "channel"),
        "W3A16": Scheme(3),
    }
    configs = {name: scheme.config() for name, scheme in schemes.items()}


class TestFloatWeights(CompressedTensorsConformance):
    schemes = {"W8A16 of floats": Scheme(8, "channel", type="float", format="float-quantized")}
    configs = {name: scheme.config() for name, scheme in schemes.items()}


class TestRoundedInputs(CompressedTensorsConformance):
    schemes = {
        "W8A8": Scheme(8, "channel", format="int-quantized", input_activations=TOKEN),
        "W8A8 with static inputs": Scheme(8, "channel", format="int-quantized", input_activations=TENSOR),
        "FP8": Scheme(
            8, "channel", type="float", format="float-quantized", input_activations=float_inputs(TOKEN)
        ),
    }
    configs = {name: scheme.config() for name, scheme in schemes.items()}
    tolerances = ROUNDED_INPUTS

    def pack(self, weight: Tensor, config: Config) -> PackedLinear:
        packed = super().pack(weight, config)
        if self.scheme(config).input_activations is not TENSOR:
            return packed
        return PackedLinear({**packed.tensors, "input_scale": torch.tensor([0.03])}, packed.weight)

    def multiply(self, x: Tensor, packed: PackedLinear, config: Config) -> Tensor:
        rounded = round_inputs(x, self.scheme(config), packed.tensors.get("input_scale"))
        return rounded @ packed.weight.t()


class TestFp8Blocks(QuantizationConformance):
    spec = BY_LABEL["fp8"]
    configs = {
        "blocks": {"quant_method": "fp8", "weight_block_size": [48, 32], "activation_scheme": "dynamic"}
    }
    scheme: ClassVar = Scheme(
        8,
        "block",
        block=(48, 32),
        type="float",
        scales_dtype=torch.float32,
        input_activations=float_inputs(TOKEN) | {"strategy": "group", "group_size": 32},
    )
    hidden_size = 128

    def pack(self, weight: Tensor, config: Config) -> PackedLinear:
        layer = ct_layers.round_weight(self.scheme, weight)
        tensors = {"weight": layer.tensors["weight"], "weight_scale_inv": layer.tensors["weight_scale"]}
        return PackedLinear(tensors, layer.weight)

    def multiply(self, x: Tensor, packed: PackedLinear, config: Config) -> Tensor:
        return round_inputs(x, self.scheme) @ packed.weight.t()


class TestSqueezeLLM(QuantizationConformance):
    spec = squeezellm.quire_register_quantizations()[0]
    ops = tuple(squeezellm.quire_register_ops())
    configs = {"4 bits": {"quant_method": "squeezellm", "wbits": 4}}
    hidden_size = 128

    def pack(self, weight: Tensor, config: Config) -> PackedLinear:
        lowest, highest = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        table = (lowest + (highest - lowest) * torch.arange(16) / 15).half()
        indices = ((weight - lowest) / (highest - lowest) * 15).round().long()
        words = pack_columns(indices.numpy()).t().contiguous()
        return PackedLinear({"qweight": words, "lookup_table": table}, table.double().gather(1, indices))


class TestInt8(QuantizationConformance):
    spec = int8_plugin.quire_register_quantizations()[0]
    configs = {"on the fly": None}
    tolerances = ROUNDED_INPUTS
    hidden_size = 128
    max_bytes_ratio = 0.27  # of float32

    def pack(self, weight: Tensor, config: Config) -> PackedLinear:
        scales = weight.abs().amax(1, keepdim=True) / 127
        return PackedLinear({"weight": weight}, (weight / scales).round().double() * scales.double())

    def multiply(self, x: Tensor, packed: PackedLinear, config: Config) -> Tensor:
        return round_inputs(x, Scheme(input_activations=TOKEN)) @ packed.weight.t()


class TestInt4(QuantizationConformance):
    """Scales are searched for in float32, so that one may be rounded another way, and integers with it."""

    spec = int4_plugin.quire_register_quantizations()[0]
    configs = {"on the fly": None}
    options = Int4Options()
    tolerances: ClassVar[Mapping[DTypeName, float]] = {"float64": 5e-3, "float32": 5e-3, "bfloat16": 2e-2}
    hidden_size = 128
    max_bytes_ratio = 0.15

    def pack(self, weight: Tensor, config: Config) -> PackedLinear:
        groups = weight.view(len(weight), -1, self.options.group_size)
        low, high = groups.double().aminmax(dim=2, keepdim=True)
        if self.options.symmetric:
            spanning, zeros = torch.where(high > -low, high, low) / -8, torch.full_like(low, 8)
        else:
            spanning = (high.clamp(min=0) - low.clamp(max=0)) / 15
            zeros = (-low.clamp(max=0) / spanning).round()

        def rounded(scales: Tensor) -> Tensor:
            return (groups / scales + zeros).round().clamp(0, 15) - zeros

        tried = torch.stack([rounded(spanning * factor) for factor in (1.1, 1.0, 0.9)])
        fitted = (groups * tried).sum(3, keepdim=True) / tried.square().sum(3, keepdim=True)
        errors = (groups - fitted * tried).norm(dim=3, keepdim=True)
        kept = fitted.gather(0, errors.argmin(0, keepdim=True))[0].half()
        return PackedLinear({"weight": weight}, (rounded(kept.float()) * kept.double()).view(weight.shape))


class TestInt4WithZeroPoints(TestInt4):
    options = Int4Options(group_size=64, symmetric=False)


def test_the_layouts_of_awq_differ() -> None:
    suite = TestAwq()
    weight = torch.randn(32, 128)
    packed = [suite.pack(weight, config) for config in TestAwq.configs.values()]
    assert len({tuple(part.tensors["qweight"].shape) for part in packed}) == 3
    for part in packed:
        assert (part.weight - weight).norm() <= 0.15 * weight.norm()
