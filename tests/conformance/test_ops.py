"""The shipped suite of ops over core's references and the native kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from quire.execution.device import detect_device
from quire.ops.specs import core_op_specs
from quire.testing import OpConformance
from quire.testing.op_suite import core_spec
from quire_kernels.native.library import native_refusal


@pytest.mark.parametrize("name", [spec.name for spec in core_op_specs()])
def test_references(name: str) -> None:
    """References are held to their own schemas; each check is one of the suite's."""
    attributes = {"spec": core_spec(name), "dtypes": ("float64", "float32", "float16", "bfloat16")}
    results = type("Reference", (OpConformance,), attributes).run(name)
    assert [result for result in results if result.status == "failed"] == []
    assert len(results) == 6


class Native(OpConformance):
    dtypes = ("float32", "bfloat16")

    @pytest.fixture(autouse=True, params=[1, 3], ids=["1 thread", "3 threads"])
    def threads(self, request: pytest.FixtureRequest) -> Iterator[None]:
        refusal = native_refusal(detect_device("cpu"), "float32")
        if refusal is not None:
            pytest.skip(refusal)
        before = torch.get_num_threads()
        torch.set_num_threads(request.param)
        yield
        torch.set_num_threads(before)


class TestNativeRMSNorm(Native):
    spec = core_spec("rms_norm")
    implementation = "quire_kernels.rms_norm.native:rms_norm"


class TestNativeAddRMSNorm(Native):
    spec = core_spec("add_rms_norm")
    implementation = "quire_kernels.rms_norm.native:add_rms_norm"


class TestNativeAddLayerNorm(Native):
    spec = core_spec("add_layer_norm")
    implementation = "quire_kernels.layer_norm.native:add_layer_norm"


class TestNativeEmbedding(Native):
    spec = core_spec("embedding")
    implementation = "quire_kernels.embedding.native:embedding"


class TestNativeCopyBlocks(Native):
    spec = core_spec("copy_blocks")
    implementation = "quire_kernels.copy_blocks.native:copy_blocks"


class TestNativeRotary(Native):
    spec = core_spec("rotary")
    implementation = "quire_kernels.rotary.native:rotary"


class TestNativeSiluAndMul(Native):
    spec = core_spec("silu_and_mul")
    implementation = "quire_kernels.silu_and_mul.native:silu_and_mul"


class TestNativePenalties(Native):
    spec = core_spec("apply_penalties")
    implementation = "quire_kernels.sampling.native:apply_penalties"
    dtypes = ("float32",)


class TestNativeGreedyTokens(Native):
    spec = core_spec("greedy_tokens")
    implementation = "quire_kernels.sampling.native:greedy_tokens"


class TestNativeSampleTokens(Native):
    spec = core_spec("sample_tokens")
    implementation = "quire_kernels.sampling.native:sample_tokens"
