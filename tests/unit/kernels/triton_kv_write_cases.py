"""Cases of quantized KV caches and of rotation in Triton's paged attention; see `triton_attention_cases.py`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
import triton
from torch import Tensor

from quire.api.batch import DTypeName, KVCacheDTypeName
from quire.api.protocols import AttentionParams
from quire.ops.quantized_kv import QuantizedCache
from quire.testing import AttentionBackendConformance
from quire_kernels.kv_write.triton import write_tokens

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory", "mended_interpreter"),
    pytest.mark.filterwarnings("ignore:invalid value encountered"),  # numpy's, of the interpreter
]

IS_INTERPRETED = triton.knobs.runtime.interpret
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
KINDS: tuple[KVCacheDTypeName, ...] = ("fp8_e4m3", "int8")
STEPS = ((("a", 1), ("b", 17)), (("a", 3), ("b", 1), ("c", 1)))


def halves(*choices: Sequence[object]) -> list[object]:
    """The product, half of it nightly. All pairs of two choices' values are in the other half."""
    cases = itertools.product(*map(enumerate, choices))
    return [
        pytest.param(
            *(value for _, value in case),
            marks=[pytest.mark.nightly] if sum(place for place, _ in case) % 2 else [],
        )
        for case in cases
    ]


class Suite(AttentionBackendConformance):
    backend = "quire_kernels.paged_attention.triton:TritonPagedAttention"


def heads_of_all_kinds(num_tokens: int, num_heads: int, head_size: int, dtype: torch.dtype) -> Tensor:
    """Random ones, whose magnitudes differ widely, and some of zeros, infinities and NaN.

    In bfloat16 none is below its normal numbers, which the interpreter does not widen well.
    """
    x = torch.randn((num_tokens, num_heads, head_size), generator=torch.Generator().manual_seed(0))
    x *= torch.logspace(-30 if dtype == torch.bfloat16 else -42, 30, num_tokens)[:, None, None]
    x[3] = 0.0
    x[5, 0, 0] = torch.inf
    x[6, :, -1] = torch.nan
    return x.to(dtype)


@pytest.mark.parametrize(
    ("kind", "dtype", "heads"),
    halves(KINDS, (torch.float32, torch.float16, torch.bfloat16), ((3, 5), (2, 33), (1, 64))),
)
def test_writes_the_bytes_of_the_reference(
    kind: KVCacheDTypeName, dtype: torch.dtype, heads: tuple[int, int]
) -> None:
    """Padding stays what it was; where a scale is not finite, elements do not matter."""
    num_heads, head_size = heads
    params = AttentionParams(2 * num_heads, num_heads, head_size, 0.3, kv_cache_dtype=kind)
    key = heads_of_all_kinds(40, num_heads, head_size, dtype)
    value = heads_of_all_kinds(40, num_heads, head_size, dtype).flip(0)
    query = torch.empty(40, 2 * num_heads, head_size, dtype=dtype)
    slots = torch.randperm(64, generator=torch.Generator().manual_seed(1))[:40]
    slots[7] = -1
    size = 2 * num_heads * (-(-head_size // 4) * 4 + 4)
    caches = [torch.full((4, 16, size), 255, dtype=torch.uint8) for _ in range(2)]
    reference = QuantizedCache(caches[0], params)
    reference.write(key[slots >= 0], value[slots >= 0], slots[slots >= 0])
    cache, inputs = caches[1].to(DEVICE), (query.to(DEVICE), key.to(DEVICE), value.to(DEVICE))
    assert write_tokens(inputs, None, False, cache, slots.to(DEVICE), params) is inputs[0]
    found, expected = (x._parts(x.tokens) for x in (QuantizedCache(cache.cpu(), params), reference))
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=0, equal_nan=True)
    known = expected[1].isfinite()
    assert found[0][known].equal(expected[0][known]) and known.sum() > 30
    unwritten = torch.ones(64, dtype=torch.bool)
    unwritten[slots[slots >= 0]] = False
    assert (cache.cpu().view(64, -1)[unwritten] == 255).all()


@pytest.mark.skipif(not IS_INTERPRETED, reason="the suite's tensors are on the CPU")
@pytest.mark.parametrize(
    ("kind", "dtype"), [*itertools.product(KINDS, ("float32", "bfloat16")), ("int8", "float16")]
)
def test_attends_to_quantized_caches(kind: KVCacheDTypeName, dtype: DTypeName) -> None:
    for layer in (
        AttentionParams(6, 3, 20, 0.3, window=7, kv_cache_dtype=kind),
        AttentionParams(4, 1, 33, 0.3, kv_cache_dtype=kind),
    ):
        Suite()._play(STEPS, [layer], dtype=dtype, is_fused=layer.window is None)


@pytest.mark.skipif(not IS_INTERPRETED, reason="the suite's tensors are on the CPU")
@pytest.mark.parametrize(
    ("kind", "interleaved", "dtype"), halves(("auto", *KINDS), (False, True), ("bfloat16", "float32"))
)
def test_rotates_to_the_last_bit(kind: KVCacheDTypeName, dtype: DTypeName, *, interleaved: bool) -> None:
    """All of a head of 16, 12 features of one of 20."""
    for layer in (
        AttentionParams(5, 1, 20, 0.3, kv_cache_dtype=kind),
        AttentionParams(6, 3, 16, 0.3, kv_cache_dtype=kind),
    ):
        Suite()._rotate(layer, dtype, interleaved=interleaved)
