"""The native `linear` against exact sums, with each kind of instructions there is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch

from quire.api.batch import DeviceInfo
from quire.api.errors import ShapeError
from quire.ops.linear import linear, pack_panels, unpack_panels
from quire.testing.op_cases import OpCase
from quire.testing.op_suite import OpConformance, core_spec
from quire_kernels.native import bfloat16
from quire_kernels.native.bfloat16 import DOT_PRODUCTS, MATRIX_TILES

REFUSAL = bfloat16.vectors_refusal(DeviceInfo("cpu"), "bfloat16")
if REFUSAL is not None:
    pytest.skip(REFUSAL, allow_module_level=True)

from quire_kernels.linear.native import Arguments, NativeLinear  # noqa: E402  # it binds the library when imported

ROWS = (1, 2, 3, 4, 5, 7, 12, 13, 16, 17, 31, 32, 33, 48, 49, 64, 80, 100, 128, 129, 190, 241, 545)
SHAPES = (
    (1, 2),
    (1024, 34),
    (16, 30),
    (17, 64),
    (32, 32),
    (70, 576),
    (130, 1000),
    (290, 896),
    (33, 1538),
    (1100, 320),
)


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=range(bfloat16.VECTORS, bfloat16.instructions() + 1), ids=str)
def native(request: pytest.FixtureRequest) -> NativeLinear:
    return NativeLinear(request.param)


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_equals_exact_sums(native: NativeLinear, outputs: int, inputs: int) -> None:
    weight = torch.randn(outputs, inputs).bfloat16()
    panels = pack_panels(weight)
    assert torch.equal(unpack_panels(panels, outputs, inputs), weight)
    bias = torch.randn(outputs).bfloat16() * 9
    for rows in ROWS:
        x = torch.randn(rows, inputs + 6)[:, 3:-3].bfloat16()
        for some in (None, bias):
            right = x.double() @ weight.double().t() + (0 if some is None else some.double())
            error = 2**-7.99 * right.abs() + 2**-20 * (x.double().abs() @ weight.double().abs().t() + 1)
            result = native(x, panels, some, outputs)
            assert result.dtype == torch.bfloat16 and result.is_contiguous()
            assert ((result.double() - right).abs() <= error).all(), f"{rows} rows"


@pytest.mark.parametrize("rows", [1, 3, 16, 30, 45, 64, 70, 128, 133, 180, 200])
def test_writes_what_recorded_steps_fuse(native: NativeLinear, rows: int) -> None:
    """The gate of an MLP, and the sum with the residual stream; there are spans of the 17 pairs of panels to pass."""
    inputs, outputs = 480, 2 * 544
    x, weight = torch.randn(rows, inputs).bfloat16(), torch.randn(outputs, inputs).bfloat16() / 8
    products = native(x, pack_panels(weight), None, outputs)
    gates, values = products.chunk(2, dim=-1)
    right = torch.nn.functional.silu(gates.double()) * values.double()
    result = run(native, x, pack_panels(weight), outputs, is_gated=True)
    assert ((result.double() - right).abs() <= 2**-6.9 * right.abs() + 2**-20).all()
    residual = torch.randn(rows, outputs).bfloat16()
    result = run(native, x, pack_panels(weight), outputs, residual=residual)
    assert result.equal((products.float() + residual.float()).bfloat16())


def run(
    native: NativeLinear,
    x: torch.Tensor,
    panels: torch.Tensor,
    outputs: int,
    *,
    is_gated: bool = False,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """The kernel with arguments that only recorded steps give; its output begins as NaN."""
    out = torch.full((len(x), outputs // 2 if is_gated else outputs), torch.nan, dtype=torch.bfloat16)
    at = None if residual is None else residual.data_ptr()
    with_dots, with_amx = native._instructions >= DOT_PRODUCTS, native._instructions == MATRIX_TILES
    sizes = (len(x), x.shape[1], outputs, x.stride(0))
    pointers = (x.data_ptr(), panels.data_ptr(), None, at, out.data_ptr())
    native._kernel(Arguments(*pointers, *sizes, is_gated, torch.get_num_threads(), with_dots, with_amx))
    return out


def test_rows_do_not_mix(native: NativeLinear) -> None:
    weight = torch.randn(70, 66).bfloat16()
    panels = pack_panels(weight)
    for rows in (3, 20, 50):
        x = torch.randn(rows, 66).bfloat16()
        clean = native(x, panels, None, 70)
        x[1] = float("nan")
        spoilt = native(x, panels, None, 70)
        assert spoilt[1].isnan().all()
        others = torch.arange(rows) != 1
        assert torch.equal(spoilt[others], clean[others])


def test_refuses_what_does_not_fit(native: NativeLinear) -> None:
    panels = pack_panels(torch.zeros(40, 64, dtype=torch.bfloat16))
    for x, outputs in (
        (torch.zeros(2, 64), 40),
        (torch.zeros(2, 66, dtype=torch.bfloat16), 40),
        (torch.zeros(2, 63, dtype=torch.bfloat16), 40),
        (torch.zeros(2, 64, dtype=torch.bfloat16), 65),
    ):
        with pytest.raises(ShapeError):
            native(x, panels, None, outputs)
    assert native(torch.zeros(0, 64, dtype=torch.bfloat16), panels, None, 40).shape == (0, 40)


def test_reference() -> None:
    weight, bias, x = torch.randn(5, 6), torch.randn(5), torch.randn(3, 6)
    torch.testing.assert_close(linear(x, pack_panels(weight), bias, 5), x @ weight.t() + bias)


class TestConformance(OpConformance):
    spec = core_spec("linear")
    implementation = "quire_kernels.linear.native:linear"
    dtypes = ("bfloat16",)

    def cases(self, dtype: torch.dtype) -> Iterable[OpCase]:
        torch.manual_seed(0)
        for rows, outputs, inputs in ((5, 33, 64), (1, 16, 30), (40, 50, 128), (0, 8, 8)):
            weight = pack_panels(torch.randn(outputs, inputs).to(dtype))
            x = torch.randn(rows, inputs + 2).to(dtype)[:, 1:-1]
            for bias in (None, torch.randn(outputs).to(dtype)):
                yield OpCase(
                    f"{rows} rows, {outputs} x {inputs}", (x, weight, bias, outputs), is_rowwise=True
                )
