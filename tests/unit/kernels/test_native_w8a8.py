"""The native w8a8_linear against exact integers, with each kind of instructions that this CPU has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor

from quire.api.batch import DeviceInfo
from quire.api.errors import ShapeError
from quire.ops.tiles import pack_tiles
from quire.testing.op_cases import OpCase
from quire.testing.op_suite import OpConformance, core_spec
from quire_kernels.w8a8_linear import support

REFUSAL = support.int8_refusal(DeviceInfo("cpu"), "bfloat16")
if REFUSAL is not None:
    pytest.skip(REFUSAL, allow_module_level=True)

# skipped above where there are no kernels
from quire_kernels.w8a8_linear.native import MAX_INPUTS, multiply, w8a8_linear  # noqa: E402

DTYPES = (torch.bfloat16, torch.float32)
ALL = range(support.DOT_PRODUCTS, support.instructions() + 1)


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def expected(
    x: Tensor, integers: Tensor, scales: Tensor, input_scale: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """The contract, step by step: float32 until the integers, exact integers, then float32 again."""
    values = x.to(torch.float32)
    largest = values.abs().amax(dim=1, keepdim=True)
    scale = torch.where(largest == 0, 1.0, largest / 127.5) if input_scale is None else input_scale.view(1, 1)
    rounded = (values / scale).round().clamp(-128, 127).to(torch.int64)
    product = (rounded @ (integers.to(torch.int64) - 128).t()).to(torch.float32) * scale * scales
    return (product if bias is None else product + bias.to(torch.float32)).to(x.dtype)


def random_integers(outputs: int, inputs: int) -> Tensor:
    return torch.randint(0, 256, (outputs, inputs), dtype=torch.uint8)


@pytest.mark.parametrize("instructions", ALL)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 4), (17, 40), (100, 64), (333, 576), (33, 4864)])
def test_equals_exact_integers(outputs: int, inputs: int, dtype: torch.dtype, instructions: int) -> None:
    integers, scales = random_integers(outputs, inputs), torch.rand(outputs) / 100
    weight, bias = pack_tiles(integers, 8), torch.randn(outputs).to(dtype)
    for rows in (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31, 32, 33, 64, 100, 300):
        x = (torch.randn(rows, inputs + 6) * 3 * torch.rand(rows, 1)).to(dtype)[:, 3:-3]
        given = torch.tensor([0.02]) if rows % 2 else None
        added = bias if rows % 3 else None
        result = multiply(x, weight, scales, given, added, outputs, instructions)
        assert result.dtype == dtype and result.is_contiguous()
        assert torch.equal(result, expected(x, integers, scales, given, added)), rows


@pytest.mark.parametrize("instructions", ALL)
def test_many_chunks_of_rows_and_groups_of_outputs(instructions: int) -> None:
    for rows, outputs, inputs in ((1300, 600, 512), (70, 40, 16000)):
        integers, scales = random_integers(outputs, inputs), torch.rand(outputs)
        x = torch.randn(rows, inputs).bfloat16()
        values = (x.float() / (x.float().abs().amax(1, keepdim=True) / 127.5)).round().clamp(-128, 127)
        exact = values.double() @ (integers.double() - 128).t()  # below 2**53: exact
        right = exact.float() * (x.float().abs().amax(1, keepdim=True) / 127.5) * scales
        result = multiply(x, pack_tiles(integers, 8), scales, None, None, outputs, instructions)
        assert torch.equal(result, right.bfloat16())


@pytest.mark.parametrize("instructions", ALL)
@pytest.mark.parametrize("is_given", [False, True], ids=["by row", "given"])
def test_rounds_every_bfloat16_as_a_division_does(is_given: bool, instructions: int) -> None:
    exponents, mantissas = 10, 128
    ladder = (
        torch.arange(exponents * mantissas, dtype=torch.int16) + (127 - exponents + 1) * mantissas
    ).view(torch.bfloat16)  # all numbers between 2**-9 and 2
    largest = ladder[-mantissas:, None]
    within = torch.where(ladder <= largest, ladder, 0)
    x = torch.cat([within, -within])  # each row ends with its largest magnitude, or with 0 after it
    integers = 128 + torch.eye(ladder.numel(), dtype=torch.uint8)
    scale = torch.cat([largest, largest]).float() / 127.5
    given = torch.tensor([0.0117]) if is_given else None
    divided = (x.float() / (0.0117 * torch.ones(()) if is_given else scale)).round().clamp(-128, 127)
    result = multiply(
        x, pack_tiles(integers, 8), torch.ones(ladder.numel()), given, None, ladder.numel(), instructions
    )
    recovered = (result.double() / (given if is_given else scale)).round()
    assert torch.equal(recovered, divided.double())


@pytest.mark.parametrize("instructions", ALL)
def test_rounds_float32_as_a_division_does(instructions: int) -> None:
    size = 256
    scale = torch.tensor([0.7310586])
    steps = (torch.arange(size) - 128 + 0.5) * scale  # about ties
    x = torch.stack(
        [steps, steps.nextafter(torch.tensor(1e9)), steps.nextafter(torch.tensor(-1e9)), steps * 1e30]
    )
    integers = 128 + torch.eye(size, dtype=torch.uint8)
    for dtype in DTYPES:
        result = multiply(
            x.to(dtype), pack_tiles(integers, 8), torch.ones(size), scale, None, size, instructions
        )
        assert torch.equal(result, expected(x.to(dtype), integers, torch.ones(size), scale))


@pytest.mark.parametrize("instructions", ALL)
def test_saturated_products_up_to_the_most_inputs(instructions: int) -> None:
    inputs = MAX_INPUTS // 4 * 4
    for q in (0, 255):
        integers, scales = torch.full((3, inputs), q, dtype=torch.uint8), torch.ones(3)
        x = torch.full((9, inputs), -127.5)  # of scale 1: a tie, to -128
        x[1::2] *= -1
        result = multiply(x, pack_tiles(integers, 8), scales, None, None, 3, instructions)
        exact = (
            torch.tensor([-128, 127]).repeat(5)[:9, None]
            * (q - 128)
            * inputs
            * torch.ones(3, dtype=torch.int64)
        )
        assert torch.equal(result, exact.to(torch.float32))


@pytest.mark.parametrize("instructions", ALL)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [6, 40])
def test_extreme_rows(rows: int, dtype: torch.dtype, instructions: int) -> None:
    integers, scales = random_integers(20, 72), torch.rand(20)
    x = torch.randn(rows, 72).to(dtype)
    x[0], x[2], x[3] = 0, x[2] * 1e-37, x[3] * 1e37
    right = expected(x, integers, scales)
    x[1, 5], x[4, 6] = float("nan"), float("inf")
    for given in (None, torch.tensor([0.02])):
        result = multiply(x, pack_tiles(integers, 8), scales, given, None, 20, instructions)
        assert result[1].isnan().all()
        assert not result[[0, 2, 3, 5]].isnan().any()
        if given is None:
            keep = [0, 2, 3, *range(5, rows)]
            assert torch.equal(result[keep], right[keep])


def test_no_rows() -> None:
    assert w8a8_linear(
        torch.empty(0, 8), pack_tiles(random_integers(5, 8), 8), torch.ones(5), None, None, 5
    ).shape == (0, 5)


def test_what_does_not_fit_is_refused() -> None:
    weight = pack_tiles(random_integers(20, 8), 8)
    with pytest.raises(ShapeError, match="of 32 outputs and 8 inputs; x has 12"):
        w8a8_linear(torch.ones(2, 12), weight, torch.ones(20), None, None, 20)
    with pytest.raises(ShapeError, match="out_features is 33"):
        w8a8_linear(torch.ones(2, 8), weight, torch.ones(33), None, None, 33)
    with pytest.raises(TypeError, match="not torch.float16"):
        w8a8_linear(torch.ones(2, 8, dtype=torch.float16), weight, torch.ones(20), None, None, 20)
    inputs = MAX_INPUTS + 1
    with pytest.raises(ShapeError, match="use the op's reference"):
        w8a8_linear(
            torch.ones(1, inputs), pack_tiles(random_integers(1, inputs), 8), torch.ones(1), None, None, 1
        )


def test_cpus_without_8_bit_dot_products_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not on cuda" in str(support.int8_refusal(DeviceInfo("cuda"), "bfloat16"))
    monkeypatch.setattr(support, "instructions", lambda: 0)
    assert "no 8-bit dot products" in str(support.int8_refusal(DeviceInfo("cpu"), "bfloat16"))


class TestConformance(OpConformance):
    spec = core_spec("w8a8_linear")
    implementation = "quire_kernels.w8a8_linear.native:w8a8_linear"
    dtypes = ("bfloat16", "float32")

    def cases(self, dtype: torch.dtype) -> Iterable[OpCase]:
        torch.manual_seed(0)
        for rows, outputs, inputs in ((5, 33, 44), (1, 16, 64), (17, 50, 200), (0, 8, 8)):
            weight, scales = pack_tiles(random_integers(outputs, inputs), 8), torch.rand(outputs) / 100
            x, bias = torch.randn(rows, inputs + 2).to(dtype)[:, 1:-1], torch.randn(outputs).to(dtype)
            name = f"{rows} rows, {outputs} outputs, {inputs} inputs"
            yield OpCase(name, (x, weight, scales, None, bias, outputs), is_rowwise=rows != outputs)
            yield OpCase(f"{name}, given scale", (x, weight, scales, torch.tensor([0.03]), None, outputs))
