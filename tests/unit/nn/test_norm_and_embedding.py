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
from quire.ops.norm import layer_norm, rms_norm


def context(dtype: str) -> Any:
    ops = SimpleNamespace(rms_norm=rms_norm, layer_norm=layer_norm)
    return SimpleNamespace(dtype=dtype, device=DeviceInfo("cpu"), ops=ops)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_rms_norm_rounds_as_transformers(dtype: str) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    oracle, module = LlamaRMSNorm(16, eps=1e-3), RMSNorm(16, 1e-3, context(dtype))
    oracle.to(torch_dtype(dtype))  # type: ignore[arg-type]
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


def test_embedding() -> None:
    module = TokenEmbedding(7, 3, torch.float32, torch.device("cpu"))
    module.weight.data.normal_()
    assert torch.equal(module(torch.tensor([4, 0])), module.weight[[4, 0]])


def test_dtypes_and_devices() -> None:
    assert torch_dtype("bfloat16") == torch.bfloat16
    with pytest.raises(ConfigError, match="'int8'"):
        torch_dtype("int8")  # type: ignore[arg-type]
    assert torch_device(DeviceInfo("cpu")) == torch.device("cpu")
    assert torch_device(DeviceInfo("cuda", 1)) == torch.device("cuda:1")
