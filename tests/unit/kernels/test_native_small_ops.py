"""The native layer norm and activations against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quire.api.batch import DeviceInfo
from quire.testing.op_suite import OpConformance, core_spec
from quire_kernels.native.library import native_refusal

REFUSAL = native_refusal(DeviceInfo("cpu"), "float32")
if REFUSAL is not None:
    pytest.skip(REFUSAL, allow_module_level=True)

from quire_kernels.activation import native  # noqa: E402  # it binds the library when imported
from quire_kernels.layer_norm.native import layer_norm  # noqa: E402  # likewise

DTYPES = [torch.bfloat16, torch.float32]
LEAST = 2e-36
"""Smaller results may be 0."""


def exact_gelu_tanh(x: Tensor) -> Tensor:
    """Without the difference that loses all digits left of zero."""
    return x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))


EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": lambda x: x * torch.special.erfc(-x * 0.5**0.5) / 2,
    "gelu_tanh": exact_gelu_tanh,
    "relu": F.relu,
}
SPECIAL = torch.tensor(
    [
        float("inf"),
        float("nan"),
        0.0,
        -0.0,
        1e-40,
        -1e-40,
        3e38,
        -3e38,
        2.0**-126,
        -(2.0**-126),
        200.0,
        -200.0,
    ]
)


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


class Native(OpConformance):
    dtypes = ("float32", "bfloat16")


class TestLayerNorm(Native):
    spec = core_spec("layer_norm")
    implementation = "quire_kernels.layer_norm.native:layer_norm"


class TestSilu(Native):
    spec = core_spec("silu")
    implementation = "quire_kernels.activation.native:silu"


class TestGelu(Native):
    spec = core_spec("gelu")
    implementation = "quire_kernels.activation.native:gelu"


class TestGeluTanh(Native):
    spec = core_spec("gelu_new")
    implementation = "quire_kernels.activation.native:gelu_new"


class TestRelu(Native):
    spec = core_spec("relu")
    implementation = "quire_kernels.activation.native:relu"


def relative_errors(found: Tensor, exact: Tensor) -> Tensor:
    """Of the values that are not tiny."""
    large = exact.abs() >= LEAST
    assert large.any()
    return ((found.double() - exact).abs() / exact.abs())[large]


@pytest.mark.parametrize("name", EXACT)
def test_the_stated_accuracy_over_the_whole_range(name: str) -> None:
    sizes = torch.logspace(-37.9, 38, 20_000)
    parts = [torch.linspace(-14, 14, 300_001), torch.linspace(-100, 100, 50_001), sizes, -sizes]
    x = torch.cat(parts)
    exact = EXACT[name](x.double())
    found = getattr(native, name)(x[None])[0]
    assert relative_errors(found, exact).max() <= native.ACCURACY[name]
    assert found.abs()[exact.abs() < LEAST].max() <= LEAST
    if name == "gelu_tanh":
        right = x >= -3
        assert relative_errors(found[right], exact[right]).max() <= 2e-6


@pytest.mark.parametrize("name", EXACT)
def test_every_bfloat16(name: str) -> None:
    """Half of 2^-7 is the rounding, a little more what float32 misses it by."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    found = getattr(native, name)(x[None])[0]
    assert found[x.isnan()].isnan().all()
    x, found = x[x.isfinite()], found[x.isfinite()]
    exact = EXACT[name](x.double())
    exact = exact.nan_to_num(0.0)  # of the most negative ones, whose cube is infinite
    assert relative_errors(found, exact).max() <= 2**-8 * 1.01
    assert found[exact.abs() < LEAST].abs().max() <= LEAST


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EXACT)
def test_special_values(name: str, dtype: torch.dtype) -> None:
    """Those of the function; at -inf all but relu are the product of -inf and 0, as in torch."""
    x = SPECIAL.to(dtype)
    found = getattr(native, name)(x[None])[0]
    exact = EXACT[name](x.double()).to(torch.float32)
    torch.testing.assert_close(found.float(), exact, equal_nan=True, rtol=1e-2, atol=LEAST)
    lowest = getattr(native, name)(torch.tensor([[-torch.inf]], dtype=dtype)).item()
    assert lowest == 0 if name == "relu" else lowest != lowest


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (7,), (3, 0), (9, 1100), (2, 3, 5)])
def test_activations_of_any_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    found = native.gelu(x)
    assert found.shape == x.shape and found.is_contiguous()
    torch.testing.assert_close(found.double(), EXACT["gelu"](x.double()), rtol=2**-7, atol=0)


def test_the_halves_of_wider_rows() -> None:
    gate, up = torch.randn(5, 70, dtype=torch.bfloat16).chunk(2, dim=-1)
    for half in (gate, up):
        assert native.silu(half).equal(native.silu(half.contiguous()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("shape", [(1, 8), (5, 33), (64, 576), (3, 4099), (1, 1), (2, 3, 64)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_layer_norm(dtype: torch.dtype, offset: float, shape: tuple[int, ...], has_bias: bool) -> None:
    """Values far from zero too, whose squares' mean would hide the variance."""
    x, weight = (torch.randn(shape) + offset).to(dtype), torch.randn(shape[-1]).to(dtype)
    bias = torch.randn(shape[-1]).to(dtype) if has_bias else None
    exact = F.layer_norm(
        x.double(), shape[-1:], weight.double(), None if bias is None else bias.double(), 1e-5
    )
    found = layer_norm(x, weight, bias, 1e-5)
    assert found.dtype == dtype and found.is_contiguous()
    rtol, atol = (2**-8, 1e-3) if dtype == torch.bfloat16 else (1e-5, 3e-6 if offset == 0 else 3e-4)
    torch.testing.assert_close(found.double(), exact, rtol=rtol, atol=atol)


def test_layer_norm_of_extremes() -> None:
    x = torch.zeros(4, 40)
    x[1], x[2, 3], x[3, 7] = 1e-18, float("nan"), float("inf")
    result = layer_norm(x, torch.ones(40), None, 1e-5)
    torch.testing.assert_close(result, F.layer_norm(x, (40,), None, None, 1e-5), equal_nan=True)
    assert result[2:].isnan().all() and not result[:2].isnan().any()


@pytest.mark.parametrize("op", ["layer_norm", "gelu"])
def test_other_dtypes_are_refused(op: str) -> None:
    x = torch.randn(2, 8, dtype=torch.float16)
    with pytest.raises(TypeError, match="bfloat16 and float32, not torch.float16"):
        layer_norm(x, x[0], None, 1e-5) if op == "layer_norm" else native.gelu(x)
