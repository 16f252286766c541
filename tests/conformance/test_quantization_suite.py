"""The suite of quantization methods: what is right passes, and planted defects are named."""

from __future__ import annotations

from typing import Any

import naive_quantization as naive
import pytest
import quantization_defects as defects
from torch import Tensor

from quire.testing import ConformanceError, PackedLinear, QuantizationConformance


class TestNaive(QuantizationConformance):
    spec = naive.spec()
    configs = {"naive": naive.CONFIG}
    hidden_size = 128

    def pack(self, weight: Tensor, config: Any) -> PackedLinear:
        return naive.pack(weight)


@pytest.mark.parametrize(
    ("defect", "check"),
    [
        (defects.SwapsGroups, "test_products"),
        (defects.ForgetsBias, "test_products"),
        (defects.WritesInput, "test_products"),
        (defects.FillsFirstPart, "test_fused_parts"),
        (defects.KeepsFloats, "test_memory"),
        (defects.HidesFloats, "test_memory"),
        (defects.IgnoresOutputSlices, "test_output_slices"),
        (defects.IgnoresInputSlices, "test_input_slices"),
        (defects.MixesRows, "test_rows_do_not_mix"),
        (defects.GuessesScales, "test_missing_tensors"),
        (defects.DependsOnBatch, "test_engine"),
        (defects.QuantizesTiedHead, "test_what_stays_in_16_bits"),
        (defects.RefusesPlainModules, "test_what_stays_in_16_bits"),
        (defects.UnequalMethods, "test_choices_are_values"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_planted_defect_is_found(defect: type, check: str) -> None:
    suite: Any = type("Planted", (TestNaive,), {"spec": naive.spec(defect)})
    try:
        with pytest.raises(ConformanceError):
            getattr(suite(), check)()
    finally:
        suite.teardown_class()
