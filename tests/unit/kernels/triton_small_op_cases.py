"""Cases of the small Triton ops, on a GPU or, where TRITON_INTERPRET=1 is set, in Triton's interpreter.

Triton reads that variable when kernels are defined: `test_triton_small_ops.py` runs this file in a process of its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import triton
from torch import Tensor

from quire.api.errors import ShapeError
from quire.ops import activation as reference_activation
from quire.ops import norm as reference_norm
from quire.ops.rotary import rotary as reference_rotary
from quire.testing import OpConformance
from quire.testing.op_suite import core_spec
from quire_kernels.activation import triton as activation
from quire_kernels.layer_norm.triton import layer_norm
from quire_kernels.rms_norm.triton import rms_norm
from quire_kernels.rotary.triton import rotary
from quire_kernels.silu_and_mul.triton import silu_and_mul

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory", "mended_interpreter"),
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered"),  # numpy's, of the interpreter
]

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
TWO_ULP = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9, torch.float32: 2e-6}
"""What is rounded twice may differ twice."""
SHAPES = [(1, 1), (3, 7), (9, 33), (2, 2, 66), (0, 8), (5,), (2, 1, 2, 10)]
ACTIVATIONS = ["silu", "gelu", "gelu_tanh", "relu"]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype).to(DEVICE)


def with_gaps(x: Tensor) -> Tensor:
    """The same values as a view of wider rows, whose gaps are NaN."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 6), float("nan"), dtype=x.dtype, device=x.device)
    wide[..., 3:-3] = x
    return wide[..., 3:-3]


def assert_equal_to_a_rounding(found: Tensor, expected: Tensor) -> None:
    """In 16 bits only few values may lie on the other side of a rounding."""
    assert found.dtype == expected.dtype
    assert found.is_contiguous()
    found = found.cpu()
    torch.testing.assert_close(found, expected, rtol=TWO_ULP[found.dtype], atol=1e-6, equal_nan=True)
    if found.dtype != torch.float32:
        is_other = (found.float() - expected.float()).abs() > 1e-6
        assert is_other.sum() <= 1 + 0.01 * found.numel()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_norms(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    weight, bias = random(shape[-1], dtype=dtype), random(shape[-1], dtype=dtype)
    for x in (random(*shape, dtype=dtype), with_gaps(random(*shape, dtype=dtype))):
        kept, eps = x.clone(), 0.01
        assert_equal_to_a_rounding(
            rms_norm(x, weight, eps), reference_norm.rms_norm(x.cpu(), weight.cpu(), eps)
        )
        for some in (bias, None):
            expected = reference_norm.layer_norm(
                x.cpu(), weight.cpu(), None if some is None else some.cpu(), eps
            )
            assert_equal_to_a_rounding(layer_norm(x, weight, some, eps), expected)
        assert x.equal(kept)


@pytest.mark.parametrize("size", [1024, 5000, 16385, 40000])
def test_norms_of_long_rows(size: int) -> None:
    """One block, one block with a rest, two and three blocks."""
    x, weight, bias = 5 + random(3, size), random(size), random(size)
    cpu = [value.cpu() for value in (x, weight, bias)]
    torch.testing.assert_close(rms_norm(x, weight, 1e-5).cpu(), reference_norm.rms_norm(*cpu[:2], 1e-5))
    found, expected = layer_norm(x, weight, bias, 1e-5).cpu(), reference_norm.layer_norm(*cpu, 1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_layer_norm_of_a_large_mean() -> None:
    x, weight = 1e4 + random(2, 300), torch.ones(300, device=DEVICE)
    expected = reference_norm.layer_norm(x.cpu().double(), weight.cpu().double(), None, 1e-5)
    torch.testing.assert_close(
        layer_norm(x, weight, None, 1e-5).cpu(), expected.float(), rtol=1e-3, atol=1e-3
    )


def test_norms_of_extremes() -> None:
    x = torch.zeros(4, 40, device=DEVICE)
    x[1], x[2], x[3, 7] = 1e-18, float("nan"), float("inf")
    weight = torch.ones(40, device=DEVICE)
    cpu, ones = x.cpu(), weight.cpu()
    for found, expected in (
        (rms_norm(x, weight, 1e-5), reference_norm.rms_norm(cpu, ones, 1e-5)),
        (layer_norm(x, weight, None, 1e-5), reference_norm.layer_norm(cpu, ones, None, 1e-5)),
    ):
        torch.testing.assert_close(found.cpu(), expected, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["silu_and_mul", *ACTIVATIONS])
def test_activations(dtype: torch.dtype, op: str) -> None:
    function = silu_and_mul if op == "silu_and_mul" else getattr(activation, op)
    for shape in (*SHAPES, (2, 2050)):
        full = (*shape[:-1], 2 * shape[-1]) if op == "silu_and_mul" else shape
        x = 3 * random(*full, dtype=dtype)
        x = x if shape[-1] > 1024 else with_gaps(x)
        kept = x.clone()
        assert_equal_to_a_rounding(function(x), expected_activation(op, x.cpu()))
        assert x.equal(kept)


def expected_activation(op: str, x: Tensor) -> Tensor:
    """By the reference, in float64: torch's own erf and tanh in float32 are off by 1e-6 far left of zero."""
    if op == "silu_and_mul":  # rounds a factor to x's dtype
        return reference_activation.silu_and_mul(x)
    expected: Tensor = getattr(reference_activation, op)(x.double())
    return expected.to(x.dtype)


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_activations_of_extremes(op: str) -> None:
    x = torch.tensor([0.0, -0.0, 1e-30, 88.5, -88.5, 300.0, -300.0, 1e30, -1e30, float("nan"), 30.0, -30.0])
    found = getattr(activation, op)(x.to(DEVICE)).cpu()
    torch.testing.assert_close(found, expected_activation(op, x), equal_nan=True, rtol=1e-5, atol=1e-30)


def test_every_other_layout() -> None:
    """Transposed, expanded, every other row, and heads of a fused product: nothing but values counts."""
    weight = random(12)[::2]
    for x in (
        random(6, 10).t(),
        random(1, 6).expand(5, 6),
        random(10, 6)[::2],
        random(4, 5, 18)[:, 1:4, 6:12],
        random(3, 4, 5, 6)[:, ::2].transpose(1, 2),
    ):
        plain = x.cpu().contiguous()
        assert_equal_to_a_rounding(
            rms_norm(x, weight, 0.1), reference_norm.rms_norm(plain, weight.cpu(), 0.1)
        )
        assert_equal_to_a_rounding(activation.gelu(x), expected_activation("gelu", plain))
        assert_equal_to_a_rounding(silu_and_mul(x), reference_activation.silu_and_mul(plain))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("head_size", "rotary_dim", "is_fused"),
    [(8, 8, False), (8, 4, True), (10, 10, True), (64, 64, True), (80, 32, False), (256, 256, True)],
)
def test_rotary(
    dtype: torch.dtype, interleaved: bool, head_size: int, rotary_dim: int, is_fused: bool
) -> None:
    """In one block of heads, or 9 query heads in three."""
    fused = random(3, 13, head_size, dtype=dtype)
    query, key, value = fused.split([9, 3, 1], dim=1)
    if not is_fused:
        query, key = query.clone(), key.clone()
    cos, sin = (random(3, rotary_dim // 2, dtype=dtype) for _ in range(2))
    kept, expected = value.clone(), [x.cpu().clone() for x in (query, key)]
    reference_rotary(*expected, cos.cpu(), sin.cpu(), interleaved)
    result = rotary(query, key, cos, sin, interleaved)
    assert result[0] is query
    assert result[1] is key
    assert value.equal(kept)
    tolerance = 1e-6 if dtype == torch.float32 else 0
    for found, wanted in zip(result, expected, strict=True):
        torch.testing.assert_close(found.cpu(), wanted, rtol=tolerance, atol=tolerance)


def test_rotary_of_columns_of_tables_and_of_no_tokens() -> None:
    query, key, table = random(4, 3, 8), random(4, 1, 8), random(4, 8)
    cos, sin = table[:, ::2], table[:, 1::2]
    expected = [query.cpu().clone(), key.cpu().clone()]
    reference_rotary(*expected, cos.cpu(), sin.cpu(), False)
    rotary(query, key, cos, sin, False)
    torch.testing.assert_close(query.cpu(), expected[0])
    torch.testing.assert_close(key.cpu(), expected[1])
    assert rotary(query[:0], key[:0], cos[:0], sin[:0], True)[0].shape == (0, 3, 8)


def test_rows_do_not_mix() -> None:
    x, weight = random(20, 24), random(24)
    dirty = x.clone()
    dirty[1], dirty[3] = float("nan"), float("inf")
    for op in (lambda x: rms_norm(x, weight, 0.1), lambda x: layer_norm(x, weight, None, 0.1), silu_and_mul):
        clean = [0, 2, *range(4, 20)]
        assert op(dirty)[clean].equal(op(x)[clean])


def test_offsets_beyond_31_bits(tmp_path: Path) -> None:
    """Rows 2**30 elements apart; the memory between is a hole in a file, or of a GPU."""
    apart = 2**30
    if DEVICE == "cpu":
        memory = torch.from_file(str(tmp_path / "hole"), True, 2 * apart + 64, dtype=torch.float16)
    elif torch.cuda.mem_get_info()[0] < 8 << 30:
        pytest.skip("needs 8 GiB of free GPU memory")
    else:
        memory = torch.zeros(2 * apart + 64, dtype=torch.float16, device=DEVICE)
    x = memory.as_strided((3, 32), (apart, 1))
    x.copy_(random(3, 32))
    near, weight = x.clone(), random(32, dtype=torch.float16)
    assert rms_norm(x, weight, 0.1).equal(rms_norm(near, weight, 0.1))
    assert layer_norm(x, weight, weight, 0.1).equal(layer_norm(near, weight, weight, 0.1))
    assert silu_and_mul(x).equal(silu_and_mul(near))
    cos, sin = random(3, 4, dtype=torch.float16), random(3, 4, dtype=torch.float16)
    query, key = memory.as_strided((3, 3, 8), (apart, 8, 1)), memory[24:].as_strided((3, 1, 8), (apart, 8, 1))
    expected = rotary(query.clone(), key.clone(), cos, sin, False)
    rotary(query, key, cos, sin, False)
    assert query.equal(expected[0])
    assert key.equal(expected[1])


def test_other_arguments_are_refused() -> None:
    x, weight = random(2, 7).double(), random(7).double()
    for call in (
        lambda: rms_norm(x, weight, 0.1),
        lambda: layer_norm(x, weight, None, 0.1),
        lambda: silu_and_mul(x),
        lambda: rotary(x[:, None], x[:, None], x, x, False),
    ):
        with pytest.raises(TypeError, match="bfloat16, float16 and float32, not torch.float64"):
            call()
    with pytest.raises(ShapeError, match=r"x is \[2, 7\]: a gate and its factor are an even number"):
        silu_and_mul(x.float())


@pytest.mark.nightly
@pytest.mark.skipif(DEVICE != "cpu", reason="the suite's tensors are on the CPU")
@pytest.mark.parametrize("op", ["rms_norm", "layer_norm", "rotary", "silu_and_mul", "gelu_new"])
def test_conformance(op: str) -> None:
    folder = "activation" if op == "gelu_new" else op
    members = {
        "spec": core_spec(op),
        "implementation": f"quire_kernels.{folder}.triton:{op}",
        "dtypes": ("bfloat16",),
    }
    results = type("Triton", (OpConformance,), members).run(op)
    assert [result for result in results if result.status != "passed"] == []
    assert len(results) == 6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 256, 4096])
@pytest.mark.parametrize("size", [128, 3584, 4096, 16384, 18432])
def test_sizes_of_models(dtype: torch.dtype, rows: int, size: int) -> None:
    x, weight = random(rows, size, dtype=dtype), random(size, dtype=dtype)
    cpu, cpu_weight = x.cpu(), weight.cpu()
    assert_equal_to_a_rounding(rms_norm(x, weight, 1e-5), reference_norm.rms_norm(cpu, cpu_weight, 1e-5))
    assert_equal_to_a_rounding(silu_and_mul(x), reference_activation.silu_and_mul(cpu))
    found = layer_norm(x, weight, None, 1e-5).cpu()
    torch.testing.assert_close(found, reference_norm.layer_norm(cpu, cpu_weight, None, 1e-5))


@pytest.mark.gpu
def test_results_beyond_31_bits() -> None:
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of free GPU memory")
    x = torch.full((2**19 + 3, 4096), -1.0, dtype=torch.float16, device=DEVICE)
    x[-3:] = random(3, 4096, dtype=torch.float16)
    weight = random(4096, dtype=torch.float16)
    assert rms_norm(x, weight, 0.1)[-3:].equal(rms_norm(x[-3:], weight, 0.1))
    assert activation.relu(x.view(-1))[-5000:].equal(x.view(-1)[-5000:].relu())


@pytest.mark.gpu
def test_captured_graphs_replay_new_inputs() -> None:
    x, weight, cos, sin = random(4, 1024), random(512), random(4, 32), random(4, 32)

    def step() -> Tensor:
        normed = rms_norm(silu_and_mul(x), weight, 0.1).view(4, 8, 64)
        rotary(normed[:, :6], normed[:, 6:], cos, sin, False)
        return activation.gelu(normed)

    values, expected = x.clone(), step()
    graph = torch.cuda.CUDAGraph()
    x.zero_()
    with torch.cuda.graph(graph):
        out = step()
    x.copy_(values)
    graph.replay()
    assert out.equal(expected)
