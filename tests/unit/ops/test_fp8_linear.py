"""The reference of fp8_linear against float64 matmuls over values taken from the format's definition."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from quire.api.errors import ShapeError
from quire.ops import fp8_linear as module
from quire.ops.fp8_linear import fp8_linear, quantize_inputs
from quire.testing.op_cases import OpCase
from quire.testing.op_suite import OpConformance, core_spec


def value_of(code: int) -> float:
    """What a float8_e4m3fn's bits mean: sign, 4 bits of exponent (bias 7), 3 of mantissa; all ones: NaN."""
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    if code & 127 == 127:
        return float("nan")
    magnitude = mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -magnitude if sign else magnitude


VALUES = torch.tensor([value_of(code) for code in range(256)], dtype=torch.float64)
MAGNITUDES = VALUES[:127]


def random_weight(outputs: int, inputs: int) -> Tensor:
    """Bits of finite numbers, uint8 [outputs, inputs]."""
    return torch.randint(0, 127, (outputs, inputs), dtype=torch.uint8) + 128 * torch.randint(
        0, 2, (outputs, inputs), dtype=torch.uint8
    )


def nearest(x: Tensor) -> Tensor:
    """The nearest representable numbers, ties to the even mantissa, saturated; float64."""
    distance = (x.double().abs().clamp(max=448)[..., None] - MAGNITUDES).abs()
    candidates = distance == distance.amin(-1, keepdim=True)
    even = candidates & (torch.arange(127) % 2 == 0)
    chosen = torch.where(even.any(-1), even.int().argmax(-1), candidates.int().argmax(-1))
    return MAGNITUDES[chosen] * x.double().sign()


def dequantized(codes: Tensor, scales: Tensor, block_rows: int, block_columns: int) -> Tensor:
    matrix = VALUES[codes.long()]
    for row in range(matrix.shape[0]):
        for column in range(matrix.shape[1]):
            matrix[row, column] *= scales[row // block_rows, column // block_columns].double()
    return matrix


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(module, "_CHUNK_WEIGHTS", 64)  # several chunks of a small layer


BLOCKS = [(1, 40), (21, 40), (8, 16), (5, 7), (21, 8)]


@pytest.mark.parametrize(("block_rows", "block_columns"), BLOCKS)
def test_weights_only(block_rows: int, block_columns: int) -> None:
    codes = random_weight(21, 40)
    scales = torch.rand(-(-21 // block_rows), -(-40 // block_columns))
    matrix = dequantized(codes, scales, block_rows, block_columns)
    x, bias = torch.randn(5, 40, dtype=torch.float64), torch.randn(21, dtype=torch.float64)
    weight = codes.view(torch.float8_e4m3fn)
    unused = torch.tensor([3.0])
    result = fp8_linear(x, weight, scales, unused, False, bias, block_rows, block_columns)
    torch.testing.assert_close(result, x @ matrix.t() + bias)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        result = fp8_linear(x.to(dtype), weight, scales, None, False, None, block_rows, block_columns)
        assert result.dtype == dtype
        right = x.to(dtype).double() @ matrix.t()
        torch.testing.assert_close(result.double(), right, rtol=tolerance, atol=tolerance * 100)


@pytest.mark.parametrize("is_given", [False, True], ids=["dynamic", "given"])
@pytest.mark.parametrize(("block_rows", "block_columns"), BLOCKS)
def test_rounded_inputs(block_rows: int, block_columns: int, is_given: bool) -> None:
    codes = random_weight(21, 40)
    scales = torch.rand(-(-21 // block_rows), -(-40 // block_columns))
    x = torch.randn(4, 40) * torch.tensor([[1.0], [100.0], [1e-3], [0.0]])
    values = torch.empty(4, 40, dtype=torch.float64)
    for start in range(0, 40, block_columns):
        part = x[:, start : start + block_columns]
        scale = part.abs().amax(1, keepdim=True) / 448
        scale = torch.full_like(scale, 0.125) if is_given else torch.where(scale == 0, 1.0, scale)
        values[:, start : start + block_columns] = nearest(part / scale) * scale.double()
    given = torch.tensor([0.125]) if is_given else None
    result = fp8_linear(
        x, codes.view(torch.float8_e4m3fn), scales, given, True, None, block_rows, block_columns
    )
    right = values @ dequantized(codes, scales, block_rows, block_columns).t()
    torch.testing.assert_close(result.double(), right, rtol=1e-5, atol=1e-4 * float(right.abs().max()))


def test_inputs_are_rounded_to_the_nearest_and_saturate() -> None:
    ties = (MAGNITUDES[1:] + MAGNITUDES[:-1]) / 2
    x = torch.cat([VALUES[VALUES.isfinite()], ties, -ties, torch.tensor([500.0, -1e30], dtype=torch.float64)])
    rounded, scale = quantize_inputs(x[None].float(), torch.ones(1), 1 << 20)
    assert rounded.dtype == torch.float8_e4m3fn and scale.shape == (1, 1)
    assert torch.equal(rounded[0].double(), nearest(x))
    assert rounded[0, -2:].tolist() == [448, -448]


def test_the_largest_of_a_row_becomes_448() -> None:
    rounded, scale = quantize_inputs(torch.tensor([[3.5, -7.0], [0.0, 0.0]]), None, 2)
    assert rounded.float().tolist() == [[224, -448], [0, 0]] and scale.tolist() == [[7 / 448], [1]]


def test_rows_with_nan_fail_alone() -> None:
    weight, scales = random_weight(6, 8).view(torch.float8_e4m3fn), torch.ones(1, 1)
    x = torch.randn(3, 8)
    right = fp8_linear(x, weight, scales, None, True, None, 6, 8)
    x[1, 2] = float("nan")
    for given in (None, torch.tensor([0.1])):
        result = fp8_linear(x, weight, scales, given, True, None, 6, 8)
        assert result[1].isnan().all() and not result[[0, 2]].isnan().any()
    assert torch.equal(fp8_linear(x, weight, scales, None, True, None, 6, 8)[[0, 2]], right[[0, 2]])


def test_scales_that_do_not_fit() -> None:
    weight = random_weight(200, 8).view(torch.float8_e4m3fn)
    with pytest.raises(ShapeError, match=r"scales \[2, 1\] .* blocks of 64 x 8: \[4, 1\] are needed"):
        fp8_linear(torch.ones(1, 8), weight, torch.ones(2, 1), None, False, None, 64, 8)


class TestConformance(OpConformance):
    spec = core_spec("fp8_linear")
    dtypes = ("float32", "bfloat16", "float64")

    def cases(self, dtype: torch.dtype) -> Iterable[OpCase]:
        torch.manual_seed(0)
        for rows, block_rows, block_columns in ((5, 1, 40), (1, 8, 16), (17, 21, 40), (0, 21, 40)):
            weight = random_weight(21, 40).view(torch.float8_e4m3fn)
            scales = torch.rand(-(-21 // block_rows), -(-40 // block_columns))
            x, bias = torch.randn(rows, 42).to(dtype)[:, 1:-1], torch.randn(21).to(dtype)
            blocks = (block_rows, block_columns)
            name = f"{rows} rows, blocks of {blocks}"
            yield OpCase(name, (x, weight, scales, None, False, bias, *blocks), is_rowwise=True)
            yield OpCase(f"{name}, rounded", (x, weight, scales, None, True, None, *blocks), is_rowwise=True)
