"""Norms call the bound ops with their weights; embeddings look up; dtypes and devices translate."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from quire.api.batch import DeviceInfo
from quire.api.errors import ConfigError
from quire.nn.dtypes import torch_device, torch_dtype
from quire.nn.embedding import TokenEmbedding
from quire.nn.norm import LayerNorm, RMSNorm
from quire.ops.embedding import embedding
from quire.ops.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm


def context(dtype: str) -> Any:
    ops = SimpleNamespace(**{op.__name__: op for op in (rms_norm, layer_norm, add_rms_norm, add_layer_norm)})
    return SimpleNamespace(dtype=dtype, device=DeviceInfo("cpu"), ops=ops)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_rms_norm_rounds_as_transformers(dtype: str) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    oracle, module = LlamaRMSNorm(16, eps=1e-3), RMSNorm(16, 1e-3, context(dtype))
    oracle.to(torch_dtype(dtype))  # type: ignore[arg-type]  # a name of a dtype
    oracle.weight.data.normal_()
    module.weight.data.copy_(oracle.weight.data)
    x = torch.randn(5, 16, dtype=module.weight.dtype)
    tolerance = 1e-6 if dtype == "float32" else 0.0
    with torch.inference_mode():
        torch.testing.assert_close(module(x), oracle(x), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(bias: bool) -> None:
    module = LayerNorm(16, 1e-3, context("float64"), bias=bias)
    for parameter in module.parameters():
        parameter.data.normal_()
    x = torch.randn(5, 16, dtype=torch.float64)
    assert torch.equal(module(x), F.layer_norm(x, (16,), module.weight, module.bias, 1e-3))
    assert len(list(module.parameters())) == 1 + bias


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
def test_the_norm_of_a_sum(dtype: str, kind: type[RMSNorm] | type[LayerNorm]) -> None:
    """The sum as it is added, rounded, and the norm of that."""
    module = kind(16, 1e-3, context(dtype))
    for parameter in module.parameters():
        parameter.data.normal_()
    x, residual = (torch.randn(5, 16, dtype=module.weight.dtype) for _ in range(2))
    normed, total = module.of_sum(x, residual)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, module(x + residual))


def test_embedding() -> None:
    module = TokenEmbedding(7, 3, torch.float32, torch.device("cpu"), embedding)
    module.weight.data.normal_()
    assert torch.equal(module(torch.tensor([4, 0])), module.weight[[4, 0]])
    for wrong in (-1, 7):
        with pytest.raises(IndexError):
            module(torch.tensor([0, wrong]))


def test_dtypes_and_devices() -> None:
    assert torch_dtype("bfloat16") == torch.bfloat16
    with pytest.raises(ConfigError, match="'int8'"):
        torch_dtype("int8")  # type: ignore[arg-type]  # to be refused
    assert torch_device(DeviceInfo("cpu")) == torch.device("cpu")
    assert torch_device(DeviceInfo("cuda", 1)) == torch.device("cuda:1")
