"""The native w4a16_linear and w8a16_linear against exact integers, with each kind of instructions there is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from quire.api.batch import DeviceInfo
from quire.api.errors import ShapeError
from quire.ops.tiles import pack_tiles, tile_columns
from quire.testing.op_cases import OpCase
from quire.testing.op_suite import OpConformance, core_spec
from quire_kernels.native import bfloat16

REFUSAL = bfloat16.vectors_refusal(DeviceInfo("cpu"), "bfloat16")
if REFUSAL is not None:
    pytest.skip(REFUSAL, allow_module_level=True)

from quire_kernels.native.weight_only import WeightOnlyLinear  # noqa: E402  # skipped above where there are no kernels

ALL = range(bfloat16.VECTORS, bfloat16.instructions() + 1)
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 33, 64, 65, 100, 300)
SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=[(bits, limit) for bits in (4, 8) for limit in ALL], ids=str)
def linear(request: pytest.FixtureRequest) -> WeightOnlyLinear:
    bits, limit = request.param
    return WeightOnlyLinear(bits, limit)


@dataclass(frozen=True)
class Layer:
    """A layer's numbers: integers [N, K], scales and zeros [N, G], the order of inputs, the bias."""

    bits: int
    integers: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    order: Tensor | None = None
    bias: Tensor | None = None

    def __call__(self, linear: WeightOnlyLinear, x: Tensor) -> Tensor:
        zeros = None if self.zeros is None else tile_columns(self.zeros)
        weight, outputs = pack_tiles(self.integers, self.bits), self.integers.shape[0]
        return linear(x, weight, tile_columns(self.scales), zeros, self.order, self.bias, outputs)

    @property
    def weight(self) -> Tensor:
        outputs, groups = self.scales.shape
        zeros = torch.tensor(1 << (self.bits - 1)) if self.zeros is None else self.zeros[..., None]
        centered = self.integers.double().view(outputs, groups, -1) - zeros.double()
        return (centered * self.scales.double()[..., None]).view(outputs, -1)

    def check(self, linear: WeightOnlyLinear, x: Tensor, is_exact: bool = True) -> None:
        """Float32 sums of exact products, rounded once; else of weights that are rounded to bfloat16."""
        values = (x if self.order is None else x[:, self.order.long()]).double()
        right = values @ self.weight.t()
        right = right if self.bias is None else right + self.bias.double()
        size = values.abs().sum(1, keepdim=True) * self.scales.double().abs().amax(1) * (1 << self.bits)
        error = 2**-7.99 * right.abs() + 2**-21 * size
        if not is_exact:
            error += 2**-7.99 * (values.abs() @ self.weight.abs().t())
        result = self(linear, x)
        assert result.dtype == torch.bfloat16 and result.is_contiguous()
        assert ((result.double() - right).abs() <= error).all(), f"{tuple(x.shape)}"


def make_layer(
    bits: int,
    outputs: int,
    inputs: int,
    groups: int,
    dtype: torch.dtype = torch.float16,
    *,
    full: bool = True,
) -> Layer:
    """Random; `full` with zeros, act-order and bias."""
    integers = torch.randint(0, 1 << bits, (outputs, inputs), dtype=torch.uint8)
    scales = (torch.rand(outputs, groups) + 0.5).to(dtype)
    if not full:
        return Layer(bits, integers, scales)
    zeros = torch.randint(0, 1 << bits, (outputs, groups), dtype=torch.uint8)
    order = torch.randperm(inputs, dtype=torch.int32)
    return Layer(bits, integers, scales, zeros, order, torch.randn(outputs).bfloat16() * 9)


@pytest.mark.parametrize("full", [False, True], ids=["plain", "zeros, order and bias"])
def test_equals_exact_integers(linear: WeightOnlyLinear, full: bool) -> None:
    for outputs, inputs, groups in ((40, 256, 2), (70, 896, 7)):
        layer = make_layer(linear.bits, outputs, inputs, groups, full=full)
        for rows in ROWS:
            layer.check(linear, torch.randn(rows, inputs + 6)[:, 3:-3].bfloat16())


@pytest.mark.parametrize("dtype", SCALE_DTYPES)
@pytest.mark.parametrize(
    ("outputs", "inputs", "groups"),
    [
        (1, 8, 1),
        (16, 40, 1),
        (17, 40, 5),
        (33, 64, 1),
        (20, 576, 9),
        (50, 1536, 1),
        (9, 4864, 38),
        (200, 640, 5),
    ],
)
def test_shapes_and_groups(
    linear: WeightOnlyLinear, outputs: int, inputs: int, groups: int, dtype: torch.dtype
) -> None:
    layer = make_layer(linear.bits, outputs, inputs, groups, dtype)
    is_exact = groups == 1 or inputs // groups % 32 == 0  # groups of 64 up to as many rows
    for rows in (1, 3, 8, 20, 60):
        layer.check(linear, torch.randn(rows, inputs).bfloat16(), is_exact or rows <= 2)
        replace(layer, zeros=None).check(linear, torch.randn(rows, inputs).bfloat16(), is_exact or rows <= 2)


@pytest.mark.parametrize("group", [32, 64])
def test_small_groups_are_exact_for_few_rows(linear: WeightOnlyLinear, group: int) -> None:
    layer = make_layer(linear.bits, 40, 640, 640 // group)
    for rows in (1, 2, 5, 16, group, group + 1, 100):
        layer.check(linear, torch.randn(rows, 640).bfloat16(), is_exact=rows <= group)


def test_many_chunks_of_rows_inputs_and_outputs(linear: WeightOnlyLinear) -> None:
    layer = make_layer(linear.bits, 600, 1024, 8)
    layer.check(linear, torch.randn(1300, 1024).bfloat16())


def test_extreme_integers_zeros_and_cancelling_sums(linear: WeightOnlyLinear) -> None:
    bits = linear.bits
    most = (1 << bits) - 1
    integers = torch.tensor([[0] * 64, [most] * 64, [0, most] * 32], dtype=torch.uint8)
    for zero in (0, most):
        layer = Layer(bits, integers, torch.ones(3, 2), torch.full((3, 2), zero, dtype=torch.uint8))
        for rows in (1, 4, 40):
            x = torch.randint(-8, 9, (rows, 64)).bfloat16()
            right = (x.double() @ layer.weight.t()).bfloat16()  # integers: float32 holds all of their sums
            assert torch.equal(layer(linear, x), right)


@pytest.mark.parametrize("rows", [2, 6, 40])
def test_a_row_that_is_not_finite_leaves_the_others_alone(linear: WeightOnlyLinear, rows: int) -> None:
    layer = make_layer(linear.bits, 40, 96, 3)
    x = torch.randn(rows, 96).bfloat16()
    expected = layer(linear, x)
    for value in (float("nan"), float("inf")):
        x[1, 5] = value
        result = layer(linear, x)
        assert not result[1].isfinite().any()
        keep = [0, *range(2, rows)]
        assert torch.equal(result[keep], expected[keep])


def test_overlapping_and_transposed_rows(linear: WeightOnlyLinear) -> None:
    layer = make_layer(linear.bits, 20, 64, 1)
    for rows in (1, 5, 40):
        layer.check(linear, torch.randn(64, rows).bfloat16().t())
        layer.check(linear, torch.randn(1, 64).bfloat16().expand(rows, 64))


def test_no_rows(linear: WeightOnlyLinear) -> None:
    assert make_layer(linear.bits, 5, 8, 1)(linear, torch.empty(0, 8).bfloat16()).shape == (0, 5)


def test_what_does_not_fit_is_refused(linear: WeightOnlyLinear) -> None:
    layer = make_layer(linear.bits, 20, 8, 1)
    with pytest.raises(ShapeError, match="of 32 outputs and 8 inputs; x has 16"):
        layer(linear, torch.ones(2, 16).bfloat16())
    with pytest.raises(TypeError, match=r"not torch\.float32.*reference"):
        layer(linear, torch.ones(2, 8))


def test_only_bfloat16_on_cpus_that_multiply_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "bfloat16, not float32" in str(bfloat16.bfloat16_refusal(DeviceInfo("cpu"), "float32"))
    assert "not on cuda" in str(bfloat16.bfloat16_refusal(DeviceInfo("cuda"), "bfloat16"))
    monkeypatch.setattr(bfloat16, "instructions", lambda: 0)
    assert "AVX512_BF16" in str(bfloat16.bfloat16_refusal(DeviceInfo("cpu"), "bfloat16"))


class Conformance(OpConformance):
    __test__ = False
    dtypes = ("bfloat16",)
    bits: int

    def cases(self, dtype: torch.dtype) -> Iterable[OpCase]:
        torch.manual_seed(0)
        for rows, outputs, inputs, groups in ((5, 33, 64, 2), (1, 16, 64, 1), (17, 50, 128, 4), (0, 8, 8, 1)):
            for full in (False, True):
                layer = make_layer(self.bits, outputs, inputs, groups, full=full)
                zeros = None if layer.zeros is None else tile_columns(layer.zeros)
                weight, scales = pack_tiles(layer.integers, self.bits), tile_columns(layer.scales)
                x = torch.randn(rows, inputs + 2).to(dtype)[:, 1:-1]
                name = f"{rows} rows, {outputs} outputs, {inputs} inputs in {groups} groups, {full=}"
                arguments = (x, weight, scales, zeros, layer.order, layer.bias, outputs)
                yield OpCase(name, arguments, is_rowwise=rows != outputs)


class TestW4A16(Conformance):
    __test__ = True
    spec = core_spec("w4a16_linear")
    implementation = "quire_kernels.w4a16_linear.native:w4a16_linear"
    bits = 4


class TestW8A16(Conformance):
    __test__ = True
    spec = core_spec("w8a16_linear")
    implementation = "quire_kernels.w8a16_linear.native:w8a16_linear"
    bits = 8
