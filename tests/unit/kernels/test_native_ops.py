"""The native ops against their references."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from quire.ops import activation, norm
from quire.ops.rotary import rotary as reference_rotary
from quire_kernels.rms_norm.native import rms_norm
from quire_kernels.rotary.native import rotary
from quire_kernels.silu_and_mul.native import silu_and_mul

DTYPES = [torch.bfloat16, torch.float32]


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def assert_equal_to_a_rounding(result: Tensor, expected: Tensor) -> None:
    """Equal but for a few values that lie between two representable ones."""
    assert result.dtype == expected.dtype and result.shape == expected.shape and result.is_contiguous()
    if result.dtype == torch.bfloat16:
        torch.testing.assert_close(result, expected, rtol=2**-6, atol=1e-30)
        assert (result != expected).sum() <= 0.01 * result.numel()
    else:
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8), (5, 33), (64, 576), (2, 3, 64), (0, 64), (1, 1)])
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)
    kept = x.clone()
    assert_equal_to_a_rounding(rms_norm(x, weight, 1e-5), norm.rms_norm(x, weight, 1e-5))
    assert x.equal(kept)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_of_rows_with_gaps(dtype: torch.dtype) -> None:
    x, weight = torch.randn(7, 100).to(dtype)[:, 20:70], torch.randn(50).to(dtype)
    assert_equal_to_a_rounding(rms_norm(x, weight, 1e-5), norm.rms_norm(x, weight, 1e-5))


def test_rms_norm_of_extremes() -> None:
    x = torch.zeros(4, 40)
    x[1], x[2], x[3, 7] = 1e-18, float("nan"), float("inf")
    result, expected = rms_norm(x, torch.ones(40), 1e-5), norm.rms_norm(x, torch.ones(40), 1e-5)
    torch.testing.assert_close(result, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 14), (1, 2), (64, 3072), (2, 3, 66), (0, 8)])
def test_silu_and_mul(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = (3 * torch.randn(shape)).to(dtype)
    kept = x.clone()
    assert_equal_to_a_rounding(silu_and_mul(x), activation.silu_and_mul(x))
    assert x.equal(kept)


def test_silu_and_mul_of_extremes() -> None:
    gate = torch.tensor(
        [0.0, -0.0, 1e-30, 88.5, -88.5, 200.0, -200.0, 1e30, -1e30, float("nan"), 30.0, -30.0]
    )
    x = torch.cat([gate, torch.ones_like(gate)])[None]
    torch.testing.assert_close(
        silu_and_mul(x), activation.silu_and_mul(x), equal_nan=True, rtol=1e-6, atol=1e-36
    )


def test_silu_of_every_bfloat16() -> None:
    gate = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    gate = gate[gate.isfinite()]
    x = torch.cat([gate, torch.ones_like(gate)])[None]
    result, expected = silu_and_mul(x)[0].float(), activation.silu_and_mul(x)[0].float()
    normal = expected.abs() > 1e-30
    torch.testing.assert_close(result[normal], expected[normal], rtol=2**-7, atol=0)
    assert (result[~normal].abs() < 1e-29).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("head_size", "rotary_dim"), [(8, 8), (8, 4), (64, 64), (80, 32), (128, 128)])
@pytest.mark.parametrize("is_fused", [False, True])
def test_rotary(
    dtype: torch.dtype, interleaved: bool, head_size: int, rotary_dim: int, is_fused: bool
) -> None:
    fused = torch.randn(37, 6, head_size).to(dtype)
    query, key, value = fused.split([3, 2, 1], dim=1)
    if not is_fused:
        query, key = query.clone(), key.clone()
    cos, sin = (torch.randn(37, rotary_dim // 2).to(dtype) for _ in range(2))
    kept, expected = value.clone(), [x.clone() for x in (query, key)]
    reference_rotary(*expected, cos, sin, interleaved)
    result = rotary(query, key, cos, sin, interleaved)
    assert result[0] is query and result[1] is key and value.equal(kept)
    tolerance = 0 if dtype == torch.bfloat16 else 1e-6
    for found, wanted in zip(result, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("op", ["rms_norm", "silu_and_mul"])
def test_other_dtypes_are_refused(op: str) -> None:
    x = torch.randn(2, 8, dtype=torch.float16)
    with pytest.raises(TypeError, match="bfloat16 and float32, not torch.float16"):
        rms_norm(x, torch.ones(8, dtype=torch.float16), 1e-5) if op == "rms_norm" else silu_and_mul(x)
