"""The native fp8_linear against its reference and against the format's definition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor

from quire.api.batch import DeviceInfo
from quire.api.errors import ShapeError
from quire.ops.fp8_linear import fp8_linear as reference
from quire.ops.fp8_linear import quantize_inputs
from quire.testing.op_cases import OpCase
from quire.testing.op_suite import OpConformance, core_spec
from quire_kernels.fp8_linear import support

REFUSAL = support.fp8_refusal(DeviceInfo("cpu"), "bfloat16")
if REFUSAL is not None:
    pytest.skip(REFUSAL, allow_module_level=True)

from quire_kernels.fp8_linear import native  # noqa: E402  # skipped above where there are no kernels
from quire_kernels.fp8_linear.native import fp8_linear  # noqa: E402  # skipped above where there are no kernels


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"], autouse=True)
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    torch.manual_seed(0)
    monkeypatch.setattr(native, "CHUNK_WEIGHTS", 4000)  # several chunks of a small layer
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random_weight(outputs: int, inputs: int) -> Tensor:
    """All finite numbers of the format."""
    codes = torch.randint(0, 127, (outputs, inputs)) + 128 * torch.randint(0, 2, (outputs, inputs))
    return codes.to(torch.uint8).view(torch.float8_e4m3fn)


def block_scales(outputs: int, inputs: int, block_rows: int, block_columns: int) -> Tensor:
    return torch.rand(-(-outputs // block_rows), -(-inputs // block_columns)) / 100


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 8, 9, 12])
@pytest.mark.parametrize("is_rounded", [False, True])
@pytest.mark.parametrize(
    ("outputs", "inputs", "block_rows", "block_columns"),
    [
        (1, 1, 1, 1),
        (33, 70, 1, 70),
        (50, 200, 50, 200),
        (200, 320, 128, 128),
        (21, 100, 5, 37),
        (40, 64, 8, 16),
    ],
)
def test_streamed_rows_have_sums_in_float32(
    outputs: int, inputs: int, block_rows: int, block_columns: int, is_rounded: bool, rows: int
) -> None:
    weight, bias = random_weight(outputs, inputs), torch.randn(outputs).bfloat16()
    scales = block_scales(outputs, inputs, block_rows, block_columns)
    x = torch.randn(rows, inputs + 3).bfloat16()[:, 1:-2]
    given = torch.tensor([0.01]) if is_rounded and rows % 2 else None
    arguments = (weight, scales, given, is_rounded, bias if rows % 3 else None, block_rows, block_columns)
    found, right = fp8_linear(x, *arguments), reference(x, *arguments)
    assert found.dtype == torch.bfloat16 and found.shape == right.shape
    terms = float(reference(x.abs(), weight.float().abs().to(weight.dtype), *arguments[1:]).abs().max())
    torch.testing.assert_close(found.float(), right.float(), rtol=2**-7, atol=terms * 1e-6)


@pytest.mark.parametrize(("block_rows", "block_columns"), [(1, 320), (200, 320), (128, 128), (7, 50)])
@pytest.mark.parametrize("is_rounded", [False, True])
def test_more_rows(block_rows: int, block_columns: int, is_rounded: bool) -> None:
    weight, bias = random_weight(200, 320), torch.randn(200).bfloat16()
    scales = block_scales(200, 320, block_rows, block_columns)
    x = torch.randn(40, 322).bfloat16()[:, 1:-1]
    for given in (None, torch.tensor([0.01])):
        arguments = (weight, scales, given, is_rounded, bias, block_rows, block_columns)
        found, right = fp8_linear(x, *arguments).float(), reference(x, *arguments).float()
        assert (found - right).norm() < 5e-3 * right.norm()
        assert (found - right).abs().max() < 1e-2 * right.abs().max()


@pytest.mark.parametrize("rows", [1, 20])
def test_every_weight_is_exact(rows: int) -> None:
    codes = torch.arange(256, dtype=torch.uint8)[:, None]
    weight, scales = codes.view(torch.float8_e4m3fn), torch.ones(1, 1)
    found = fp8_linear(torch.ones(rows, 1).bfloat16(), weight, scales, None, False, None, 256, 1)
    right = weight.t().float().expand(rows, 256)
    torch.testing.assert_close(found.float(), right, rtol=0, atol=0, equal_nan=True)


def test_inputs_are_rounded_as_the_reference_does() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    finite = every[every.isfinite()]
    zero = finite.new_zeros(1)
    for x, given, group in (
        (finite[None], torch.tensor([1.0]), finite.numel()),
        (finite[None], torch.tensor([0.3]), finite.numel()),
        (finite[:, None], None, 1),
        ((torch.randn(9, 300) * 10 ** torch.randn(9, 1)).bfloat16(), None, 128),
        (zero.repeat(3, 5), None, 4),
    ):
        values, scales = native._round_inputs(x, given, group)
        right, by = quantize_inputs(x, given, group)
        assert torch.equal(values.float(), right.float())
        assert torch.equal(scales, by.expand_as(scales))


@pytest.mark.parametrize("rows", [3, 20])
def test_rows_with_nan_fail_alone(rows: int) -> None:
    weight, scales = random_weight(6, 128), torch.ones(1, 1)
    x = torch.randn(rows, 128).bfloat16()
    x[1, 2] = float("nan")
    for is_rounded, given in ((False, None), (True, None), (True, torch.tensor([0.1]))):
        result = fp8_linear(x, weight, scales, given, is_rounded, None, 6, 128)
        assert result[1].isnan().all() and not result[[0, *range(2, rows)]].isnan().any()


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = random_weight(200, 8), torch.ones(1, 8).bfloat16()
    with pytest.raises(ShapeError, match=r"scales \[4, 1\] are needed"):
        fp8_linear(x, weight, torch.ones(2, 1), None, False, None, 64, 8)
    with pytest.raises(ShapeError, match="x of 8 inputs"):
        fp8_linear(x[:, 1:], weight, torch.ones(1, 1), None, False, None, 200, 8)
    with pytest.raises(ShapeError, match=r"torch.float32; the native kernel takes"):
        fp8_linear(x.float(), weight, torch.ones(1, 1), None, False, None, 200, 8)
    assert "not float32" in str(support.fp8_refusal(DeviceInfo("cpu"), "float32"))
    assert "not on cuda" in str(support.fp8_refusal(DeviceInfo("cuda"), "bfloat16"))


class TestConformance(OpConformance):
    spec = core_spec("fp8_linear")
    implementation = "quire_kernels.fp8_linear.native:fp8_linear"
    dtypes = ("bfloat16",)

    def cases(self, dtype: torch.dtype) -> Iterable[OpCase]:
        torch.manual_seed(0)
        for rows, block_rows, block_columns in ((5, 1, 40), (1, 8, 16), (9, 21, 40), (0, 21, 40)):
            weight, bias = random_weight(21, 40), torch.randn(21).to(dtype)
            scales = block_scales(21, 40, block_rows, block_columns)
            x, blocks = torch.randn(rows, 42).to(dtype)[:, 1:-1], (block_rows, block_columns)
            name = f"{rows} rows, blocks of {blocks}"
            yield OpCase(name, (x, weight, scales, None, False, bias, *blocks), is_rowwise=True)
            yield OpCase(f"{name}, rounded", (x, weight, scales, None, True, None, *blocks), is_rowwise=True)
