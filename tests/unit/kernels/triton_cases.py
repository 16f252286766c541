"""Cases of the Triton linears, on a GPU or, where TRITON_INTERPRET=1 is set, in Triton's interpreter.

Triton reads that variable when kernels are defined: `test_triton_linears.py` runs this file in a process of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import triton
from torch import Tensor

from quire.api.errors import ShapeError
from quire.ops.tiles import pack_tiles, tile_columns
from quire_kernels.triton import weight_only
from quire_kernels.triton.plans import Device, Plan, make_plan
from quire_kernels.triton.weight_only import TiledWeight, dequantized, tiled_linear_by
from quire_kernels.w4a16_linear.triton import w4a16_linear
from quire_kernels.w8a16_linear.triton import w8a16_linear

pytestmark = pytest.mark.usefixtures("poisoned_memory", "mended_interpreter")

IS_INTERPRETED = triton.knobs.runtime.interpret
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
SMALL = Device(processors=1, is_cuda=not IS_INTERPRETED)
OPS = {4: w4a16_linear, 8: w8a16_linear}
EPSILON = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""A unit in the last place."""


@dataclass(frozen=True)
class Case:
    rows: int
    inputs: int
    outputs: int
    groups: int
    bits: int = 4
    dtype: torch.dtype = torch.float16
    scale_dtype: torch.dtype = torch.float16
    has_zeros: bool = False
    has_order: bool = False
    has_bias: bool = False

    def __str__(self) -> str:
        flags = [name[4:] for name in ("has_zeros", "has_order", "has_bias") if getattr(self, name)]
        dtypes = f"{str(self.dtype)[6:]}-{str(self.scale_dtype)[6:]}"
        return "-".join(
            [f"{self.rows}x{self.inputs}x{self.outputs}", f"g{self.groups}", f"w{self.bits}", dtypes, *flags]
        )


class Linear:
    """Random arguments of a case, and what must come out."""

    def __init__(self, case: Case) -> None:
        random = torch.Generator().manual_seed(1)
        top = 1 << case.bits
        shape, table = (case.outputs, case.inputs), (case.outputs, case.groups)
        q = torch.randint(top, shape, generator=random, dtype=torch.uint8)
        zeros = torch.full(table, top // 2, dtype=torch.uint8)
        if case.has_zeros:
            zeros = torch.randint(top, table, generator=random, dtype=torch.uint8)
        scales = (torch.rand(table, generator=random) / top + 0.01).to(case.scale_dtype)
        order = torch.randperm(case.inputs, generator=random)
        bias = torch.randn(case.outputs, generator=random).to(case.dtype)
        self.case = case
        self.x = torch.randn(case.rows, case.inputs, generator=random).to(case.dtype).to(DEVICE)
        self.weight = pack_tiles(q, case.bits).to(DEVICE)
        self.scales = tile_columns(scales).to(DEVICE)
        self.zeros = tile_columns(zeros).to(DEVICE) if case.has_zeros else None
        self.order = order.to(torch.int32).to(DEVICE) if case.has_order else None
        self.bias = bias.to(DEVICE) if case.has_bias else None

        per_group = case.inputs // case.groups
        wide_zeros, wide_scales = (t.double().repeat_interleave(per_group, dim=1) for t in (zeros, scales))
        self.matrix = (q.double() - wide_zeros) * wide_scales
        x = self.x.cpu().double()
        x = x[:, order] if case.has_order else x
        self.expected = x @ self.matrix.t() + (bias.double() if case.has_bias else 0)
        self.magnitude = x.abs() @ self.matrix.abs().t()

    @property
    def tiled(self) -> TiledWeight:
        return TiledWeight(self.weight, self.scales, self.zeros, self.case.bits, self.case.outputs)

    def run(self, x: Tensor | None = None) -> Tensor:
        x = self.x if x is None else x
        rest = (self.weight, self.scales, self.zeros, self.order, self.bias, self.case.outputs)
        return OPS[self.case.bits](x, *rest)

    def plan(self, device: Device = SMALL) -> Plan:
        words = self.weight.shape[1]
        return make_plan(self.case.rows, self.case.outputs, words, words // self.case.groups, device)

    def check(self, out: Tensor, *, rounds_weights: bool = False) -> None:
        """Within one rounding of the exact result; `rounds_weights`: of each of its terms, too."""
        assert out.dtype == self.case.dtype
        assert out.shape == self.expected.shape
        epsilon = EPSILON[self.case.dtype]
        bound = epsilon * self.expected.abs() + (epsilon if rounds_weights else 1e-5) * self.magnitude + 1e-6
        error = (out.cpu().double() - self.expected).abs()
        worst = (error - bound).argmax()
        assert (error <= bound).all(), f"{out.flatten()[worst]}, not {self.expected.flatten()[worst]}"


def all_cases() -> Iterator[Case]:
    both = ((4, torch.float16), (8, torch.float16), (4, torch.bfloat16), (8, torch.bfloat16))
    for bits, dtype in both:
        half, full = torch.float16, torch.float32
        yield Case(1, 8, 1, 1, bits, dtype, full)  # the least
        yield Case(3, 136, 21, 1, bits, dtype, dtype, has_zeros=True, has_bias=True)  # one group, odd sizes
        yield Case(5, 256, 80, 2, bits, dtype, full, has_zeros=True)  # groups of 128
        yield Case(2, 320, 16, 5, bits, dtype, half, has_bias=True)  # groups of 64
        yield Case(9, 160, 33, 5, bits, dtype, half, has_zeros=True)  # groups of 32
        yield Case(17, 128, 70, 1, bits, dtype, torch.bfloat16)  # arranged
        yield Case(3, 72, 20, 3, bits, dtype, half, has_zeros=True, has_order=True, has_bias=True)
    yield Case(33, 64, 130, 2, 4, has_order=True)  # wide blocks of outputs
    yield Case(129, 64, 17, 1, 8)  # several blocks of rows


@pytest.mark.parametrize("case", list(all_cases()), ids=str)
def test_exact_integers(case: Case) -> None:
    linear = Linear(case)
    linear.check(linear.run(), rounds_weights=linear.plan().grouping == "words")


@pytest.mark.parametrize("block_rows", [8, 16, 64])
@pytest.mark.parametrize("block_outputs", [64, 128])
def test_block_sizes(block_rows: int, block_outputs: int) -> None:
    linear = Linear(Case(10, 128, 140, 1, has_zeros=True))
    plan = dataclasses.replace(linear.plan(), block_rows=block_rows, block_outputs=block_outputs)
    linear.check(tiled_linear_by(plan, linear.x, linear.tiled, None, None))


@pytest.mark.parametrize("splits", [2, 4, 8])
@pytest.mark.parametrize(("bits", "groups"), [(4, 1), (8, 3), (4, 12)])
def test_splits(bits: int, groups: int, splits: int) -> None:
    """Three or six steps: some splits end early or have none."""
    linear = Linear(Case(3, 384, 40, groups, bits, has_zeros=True, has_bias=True))
    plan = dataclasses.replace(linear.plan(), splits=splits)
    results = [tiled_linear_by(plan, linear.x, linear.tiled, None, linear.bias) for _ in range(2)]
    linear.check(results[0], rounds_weights=plan.grouping == "words")
    assert results[0].equal(results[1])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", list(EPSILON))
def test_many_rows(bits: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dequantized in two chunks, and multiplied by torch."""
    monkeypatch.setattr(weight_only, "MOST_TILED_ROWS", 5)
    monkeypatch.setattr(weight_only, "_CHUNK_BYTES", 1)
    case = Case(6, 64, 300, 2, bits, dtype, has_zeros=True, has_order=True)
    for has_bias in (True, False):
        linear = Linear(dataclasses.replace(case, has_bias=has_bias))
        linear.check(linear.run(), rounds_weights=True)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("inputs", "groups"), [(8, 1), (288, 9), (256, 2)])
def test_dequantized(bits: int, inputs: int, groups: int) -> None:
    linear = Linear(Case(1, inputs, 37, groups, bits, scale_dtype=torch.float32, has_zeros=inputs > 8))
    expected = linear.matrix.to(torch.float32).to(torch.float16)
    found = dequantized(linear.tiled, torch.float16).cpu()
    torch.testing.assert_close(found, expected, rtol=2**-10, atol=0)


def test_rows_with_gaps_and_columns() -> None:
    linear = Linear(Case(4, 64, 24, 1))
    wide = torch.full((4, 80), float("nan"), dtype=torch.float16, device=DEVICE)
    wide[:, 8:72] = linear.x
    linear.check(linear.run(wide[:, 8:72]))
    linear.check(linear.run(linear.x.t().contiguous().t()))


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_rows_do_not_mix() -> None:
    linear = Linear(Case(4, 136, 24, 1))
    x = linear.x.clone()
    x[1], x[3] = float("nan"), float("inf")
    out, clean = linear.run(x), linear.run()
    assert out[0].equal(clean[0])
    assert out[2].equal(clean[2])
    assert not out[1].isfinite().any()


def test_no_rows() -> None:
    linear = Linear(Case(0, 64, 24, 1))
    assert linear.run().shape == (0, 24)


def test_groups_within_words_take_the_reference() -> None:
    linear = Linear(Case(2, 24, 5, 2))
    linear.check(linear.run(), rounds_weights=True)


def test_other_arguments_are_refused() -> None:
    linear = Linear(Case(2, 64, 24, 1))
    with pytest.raises(ShapeError, match=r"x is torch.float32; .* torch.bfloat16 and torch.float16"):
        linear.run(linear.x.float())
    with pytest.raises(ShapeError, match=r"x is \[2, 56\]; weights of 64 inputs"):
        linear.run(linear.x[:, :56])


@pytest.mark.gpu
@pytest.mark.parametrize(("bits", "dtype"), list(itertools.product((4, 8), EPSILON)))
@pytest.mark.parametrize("rows", [1, 8, 16, 24, 64, 256, 300])
@pytest.mark.parametrize("group", [32, 64, 128, 1024])
def test_sizes_of_models(bits: int, dtype: torch.dtype, rows: int, group: int) -> None:
    linear = Linear(Case(rows, 1024, 1536, 1024 // group, bits, dtype, torch.float16, has_zeros=group == 64))
    rounds = rows > weight_only.MOST_TILED_ROWS or linear.plan().grouping == "words"
    linear.check(linear.run(), rounds_weights=rounds)


@pytest.mark.gpu
def test_unpacking_one_by_one() -> None:
    """As on ROCm."""
    for bits, dtype in itertools.product((4, 8), EPSILON):
        linear = Linear(Case(5, 256, 96, 2, bits, dtype, has_zeros=True))
        plan = dataclasses.replace(linear.plan(), is_packed=False)
        linear.check(tiled_linear_by(plan, linear.x, linear.tiled, None, None))


@pytest.mark.gpu
def test_captured_graphs_replay_new_inputs() -> None:
    linear = Linear(Case(4, 1024, 512, 8, has_order=True, has_bias=True))
    values, expected = linear.x.clone(), linear.run()
    graph = torch.cuda.CUDAGraph()
    linear.x.zero_()
    with torch.cuda.graph(graph):
        out = linear.run()
    linear.x.copy_(values)
    graph.replay()
    assert out.equal(expected)


@pytest.mark.gpu
def test_offsets_beyond_31_bits() -> None:
    """2**31 words of weights, and 2**31 results."""
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    for rows, inputs, tiles in ((1, 8192, (1 << 17) + 1), (256, 64, (1 << 19) + 1)):
        words = inputs // 8
        weight = torch.randint(-(2**31), 2**31, (tiles, words, 16), dtype=torch.int32, device=DEVICE)
        scales = torch.full((tiles, 1, 16), 0.01, dtype=torch.float16, device=DEVICE)
        x = torch.randn(rows, inputs, dtype=torch.float16, device=DEVICE)
        out = w4a16_linear(x, weight, scales, None, None, None, 16 * tiles)
        last = w4a16_linear(x, weight[-8:].clone(), scales[-8:].clone(), None, None, None, 128)
        torch.testing.assert_close(out[:, -128:], last, rtol=2e-3, atol=2e-3)
        del weight, out
