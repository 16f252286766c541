"""The shipped suite: layers whole, fused and sliced, memory, errors, and a model in an engine."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from quire_my_quantization.method import MyQuantization
from quire_my_quantization.plugin import SPEC, supports
from torch import Tensor

from quire.api.batch import DeviceInfo
from quire.api.errors import QuantizationError
from quire.api.quantization import QuantizationContext, QuantizationRequest
from quire.testing import PackedLinear, QuantizationConformance

CONFIG = {"quant_method": "my-quantization", "bits": 8, "group_size": 32}


class TestMyQuantization(QuantizationConformance):
    spec = SPEC
    configs = {"groups of 32": CONFIG, "groups of 64": {**CONFIG, "group_size": 64}}

    def pack(self, weight: Tensor, config: Mapping[str, object] | None) -> PackedLinear:
        size = int(str((config or CONFIG)["group_size"]))
        grouped = weight.double().view(weight.shape[0], -1, size)
        scales = (grouped.abs().amax(-1) / 127).float()
        codes = (grouped / scales.double()[..., None]).round()
        stands_for = (codes * scales.double()[..., None]).flatten(1)
        return PackedLinear({"codes": codes.flatten(1).to(torch.int8), "scales": scales}, stands_for)


def test_configs_that_are_refused() -> None:
    request = QuantizationRequest({**CONFIG, "group_size": 0}, DeviceInfo("cpu"), "float32")
    with pytest.raises(QuantizationError, match="group_size is 0"):
        MyQuantization(QuantizationContext(request, ops=None))  # type: ignore[arg-type]  # ops are not reached
    request = QuantizationRequest({**CONFIG, "bits": 3}, DeviceInfo("cpu"), "float32")
    assert supports(request) == "it has 3 bits, 8 are served"
