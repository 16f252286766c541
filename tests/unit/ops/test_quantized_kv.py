"""The reference of quantized KV caches."""

from __future__ import annotations

import pytest
import torch

from quire.api.batch import KVCacheDTypeName
from quire.api.config import EngineConfig
from quire.api.protocols import AttentionParams
from quire.ops.paged_attention import TorchPagedAttention
from quire.ops.quantized_kv import KV_FORMATS, QuantizedCache, dequantize_heads, quantize_heads

KINDS: tuple[KVCacheDTypeName, ...] = ("fp8_e4m3", "int8")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_is_kept_is_within_half_a_step(kind: KVCacheDTypeName, dtype: torch.dtype) -> None:
    x = torch.randn(50, 3, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    elements, scales = quantize_heads(x, KV_FORMATS[kind])
    error = (dequantize_heads(elements, scales, torch.float64) - x.double()).abs()
    largest = x.double().abs().amax(-1, keepdim=True)
    step = largest / 127 if kind == "int8" else torch.maximum(x.double().abs() / 8, largest / 448 / 512)
    assert (error <= 0.5001 * step).all() and error.max() > 0
    assert dequantize_heads(elements, scales, dtype).dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros_and_sickness_shows(kind: KVCacheDTypeName) -> None:
    x = torch.ones(4, 8)
    x[0], x[1, 3], x[2, 3], x[3] = 0.0, torch.nan, torch.inf, 1e-44
    found = dequantize_heads(*quantize_heads(x, KV_FORMATS[kind]), torch.float32)
    assert found[0].equal(torch.zeros(8))
    assert found[1].isnan().all()
    assert not found[2].isfinite().any()
    assert found[3].abs().max() <= 2e-38


@pytest.mark.parametrize("kind", KINDS)
def test_layout(kind: KVCacheDTypeName) -> None:
    """Elements of keys, of values, then scales; heads of 5 take 8 bytes."""
    params = AttentionParams(4, 2, 5, 1.0, kv_cache_dtype=kind)
    shape = TorchPagedAttention().kv_cache_shape(3, 4, params)
    assert shape == (3, 4, 2 * 2 * (8 + 4))
    cache = QuantizedCache(torch.full(shape, 255, dtype=torch.uint8), params)
    top = KV_FORMATS[kind].top
    key, value = torch.full((1, 2, 5), 2 * top), torch.full((1, 2, 5), -top)
    key[0, 1] = 0.0
    kept = cache.write(key, value, torch.tensor([6]))
    assert kept[0].equal(key) and kept[1].equal(value)
    found = cache.read(torch.tensor([6]), torch.float32)
    assert found.equal(torch.cat((key, value), 1)) and found.equal(cache.read(slice(6, 7), torch.float32))
    row = cache.tokens[6]
    assert row[32:].view(torch.float32).tolist() == [2.0, 2.0**-126, 1.0, 1.0]
    assert len(set(row[:5].tolist())) == 1 and len(set(row[16:21].tolist())) == 1
    others = torch.cat((cache.tokens[:6], cache.tokens[7:]))
    assert (others == 255).all()


def test_names_of_the_setting() -> None:
    names = {"fp8": "fp8_e4m3", "fp8_e4m3": "fp8_e4m3", "int8": "int8", "auto": "auto"}
    for given, name in names.items():
        config = EngineConfig.from_keywords({"model": "tiny", "kv_cache_dtype": given})
        assert config.cache.kv_cache_dtype_name == name
