"""The shipped suite of attention backends over core's and the native one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from quire.execution.device import detect_device
from quire.testing import AttentionBackendConformance
from quire_kernels.native.library import native_refusal


class TestTorchPaged(AttentionBackendConformance):
    backend = "quire.ops.paged_attention:TorchPagedAttention"
    dtypes = ("float64", "float32", "float16", "bfloat16")
    kv_cache_dtypes = ("auto", "fp8_e4m3", "int8")
    is_thorough = True


class TestNativePaged(AttentionBackendConformance):
    backend = "quire_kernels.paged_attention.native:NativePagedAttention"
    dtypes = ("float32", "bfloat16")
    kv_cache_dtypes = ("auto", "fp8_e4m3", "int8")
    is_thorough = True

    @pytest.fixture(autouse=True, params=[1, 3], ids=["1 thread", "3 threads"])
    def threads(self, request: pytest.FixtureRequest) -> Iterator[None]:
        refusal = native_refusal(detect_device("cpu"), "float32")
        if refusal is not None:
            pytest.skip(refusal)
        before = torch.get_num_threads()
        torch.set_num_threads(request.param)
        yield
        torch.set_num_threads(before)
