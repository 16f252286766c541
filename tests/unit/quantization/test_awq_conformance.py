"""The suite of quantization methods over AWQ's layouts, as they are and in tiles."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from awq_layers import AwqLayout, awq_tensors
from quire.testing import PackedLinear, QuantizationConformance
from quire.testing.quantization_base import Config
from quire_quantization.awq import marlin_plugin, plugin

LAYOUTS = {
    name: AwqLayout(name.partition(" ")[0], size)
    for name, size in (("gemm", 64), ("gemv per channel", -1), ("gemv_fast", 64))
}


class TestAwq(QuantizationConformance):
    spec = plugin.quire_register_quantizations()[0]
    ops = tuple(plugin.quire_register_ops())
    configs = {name: layout.config() for name, layout in LAYOUTS.items()}
    hidden_size = 128

    def pack(self, weight: Tensor, config: Config) -> PackedLinear:
        layout = next(layout for layout in LAYOUTS.values() if layout.config() == config)
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


class TestAwqMarlin(TestAwq):
    spec = marlin_plugin.quire_register_quantizations()[0]


def test_the_layouts_differ() -> None:
    suite = TestAwq()
    weight = torch.randn(32, 128)
    packed = [suite.pack(weight, config) for config in TestAwq.configs.values()]
    assert len({tuple(part.tensors["qweight"].shape) for part in packed}) == 3
    for part in packed:
        assert (part.weight - weight).norm() <= 0.15 * weight.norm()
