"""Values of small and of large magnitude in float16 and a quantized KV cache; see `triton_attention_cases.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from quire.api.batch import KVCacheDTypeName
from quire.api.protocols import AttentionParams
from quire.ops.paged_attention import TorchPagedAttention
from quire.testing.attention_cases import CacheShape, PagedSimulation, StepTensors
from quire_kernels.paged_attention.triton import TritonPagedAttention

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory", "mended_interpreter"),
    pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="the simulation's tensors are on the CPU"),
]


class Sized(PagedSimulation):
    """Values are of another magnitude than queries and keys."""

    size: float

    def _grow(self, *args: Any) -> StepTensors:
        tensors = super()._grow(*args)
        tensors.value.mul_(self.size)
        return tensors


def outputs(backend: TorchPagedAttention, kind: KVCacheDTypeName, size: float) -> Tensor:
    layer = AttentionParams(4, 2, 64, scale=0.125, kv_cache_dtype=kind)
    simulation = Sized(backend, [layer], CacheShape(16, 64, torch.float16, is_exact=False))
    simulation.size = size
    return torch.cat([simulation.step(rows)[0][0] for rows in ((("a", 40), ("b", 5)), (("a", 1), ("b", 1)))])


@pytest.mark.parametrize("kind", ["fp8_e4m3", "int8"])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_digits_do_not_depend_on_magnitudes(kind: KVCacheDTypeName, size: float) -> None:
    """A weight times a value's scale is rounded to float16, which has no digits left at 1e-7."""
    found = outputs(TritonPagedAttention(), kind, size).double()
    expected = outputs(TorchPagedAttention(), kind, size).double()
    assert float((found - expected).norm() / expected.norm()) < 2e-3
