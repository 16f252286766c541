"""The ops' references against other formulations of the same functions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN

from quire.ops import activation
from quire.ops.norm import layer_norm, rms_norm
from quire.ops.rotary import rotary

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8), (5, 33), (2, 3, 64)])
def test_rms_norm_rounds_as_transformers_does(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(shape[-1], dtype=dtype)
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
    expected, kept = weight * wide.to(dtype), x.clone()
    result = rms_norm(x, weight, 1e-5)
    assert result.dtype == dtype and x.equal(kept)
    torch.testing.assert_close(result, expected, atol=0, rtol=1e-6 if dtype != torch.bfloat16 else 0)


@pytest.mark.parametrize("has_bias", [True, False])
def test_layer_norm(has_bias: bool) -> None:
    x, weight = torch.randn(5, 16, dtype=torch.float64), torch.randn(16, dtype=torch.float64)
    bias = torch.randn(16, dtype=torch.float64) if has_bias else None
    deviation = x - x.mean(-1, keepdim=True)
    expected = deviation / (deviation.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    if bias is not None:
        expected = expected + bias
    torch.testing.assert_close(layer_norm(x, weight, bias, 1e-5), expected)


def rotate_naively(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    half, out = cos.shape[1], x.clone()
    for i in range(half):
        first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        a, b, c, s = x[..., first], x[..., second], cos[:, None, i], sin[:, None, i]
        out[..., first], out[..., second] = a * c + -b * s, b * c + a * s
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [8, 4])
@pytest.mark.parametrize("is_fused", [False, True])
def test_rotary_is_exact(dtype: torch.dtype, interleaved: bool, rotary_dim: int, is_fused: bool) -> None:
    fused = torch.randn(7, 6, 8, dtype=dtype)
    query, key, value = fused.split([3, 2, 1], dim=1)
    if not is_fused:
        query, key = query.clone(), key.clone()
    cos, sin = torch.randn(7, rotary_dim // 2, dtype=dtype), torch.randn(7, rotary_dim // 2, dtype=dtype)
    expected = [rotate_naively(x, cos, sin, interleaved) for x in (query, key)]
    kept = value.clone()
    result = rotary(query, key, cos, sin, interleaved)
    assert result[0] is query and result[1] is key
    assert query.equal(expected[0]) and key.equal(expected[1]) and value.equal(kept)


def test_rotary_of_gaps_between_queries_and_keys() -> None:
    wide = torch.randn(4, 6, 8)
    query, key = wide[:, :2], wide[:, 4:]
    cos, sin = torch.randn(4, 4), torch.randn(4, 4)
    expected = wide.clone()
    expected[:, :2] = rotate_naively(query, cos, sin, False)
    expected[:, 4:] = rotate_naively(key, cos, sin, False)
    rotary(query, key, cos, sin, False)
    assert wide.equal(expected)


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu"])
def test_activations_bear_transformers_names(name: str) -> None:
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    torch.testing.assert_close(getattr(activation, name)(x), ACT2FN[name](x), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_and_mul(dtype: torch.dtype) -> None:
    x = torch.randn(5, 14, dtype=dtype)
    kept = x.clone()
    gate, up = x[:, :7], x[:, 7:]
    result = activation.silu_and_mul(x)
    assert result.equal(torch.nn.functional.silu(gate) * up) and result.is_contiguous() and x.equal(kept)


def test_gelu_is_exact() -> None:
    x = torch.tensor([1.0], dtype=torch.float64)
    assert activation.gelu(x).item() == pytest.approx(0.5 * (1 + math.erf(1 / math.sqrt(2))))
