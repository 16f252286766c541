"""Cases of the Triton ops that add to the stream and norm it, look rows up, and copy blocks.

On a GPU or, where TRITON_INTERPRET=1 is set, in Triton's interpreter: `test_triton_small_ops.py` runs this file in a
process of its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import triton
from torch import Tensor
from triton_small_op_cases import (
    DEVICE,
    DTYPES,
    SHAPES,
    assert_equal_to_a_rounding,
    random,
    with_gaps,
)

from quire.api.errors import ShapeError
from quire.ops import norm as reference
from quire.testing import OpConformance
from quire.testing.op_cases import core_cases
from quire.testing.op_suite import core_spec
from quire_kernels.copy_blocks.triton import copy_blocks
from quire_kernels.embedding.triton import embedding
from quire_kernels.layer_norm.triton import add_layer_norm, layer_norm
from quire_kernels.rms_norm.triton import add_rms_norm, rms_norm

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory", "mended_interpreter"),
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered"),  # numpy's, of the interpreter
]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_and_norms(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """The bits of a sum and the norm of it, and the reference's values; the arguments stay as they were."""
    weight, bias, eps = random(shape[-1], dtype=dtype), random(shape[-1], dtype=dtype), 0.01
    plain, wide = random(*shape, dtype=dtype), with_gaps(random(*shape, dtype=dtype))
    for x, residual in ((plain, wide), (wide, plain), (plain, plain)):
        kept = x.clone(), residual.clone()
        total = (x.cpu() + residual.cpu()).to(DEVICE)
        normed, found = add_rms_norm(x, residual, weight, eps)
        assert found.equal(total)
        assert normed.equal(rms_norm(total, weight, eps))
        assert_equal_to_a_rounding(normed, reference.rms_norm(total.cpu(), weight.cpu(), eps))
        for some in (bias, None):
            normed, found = add_layer_norm(x, residual, weight, some, eps)
            assert found.equal(total)
            assert normed.equal(layer_norm(total, weight, some, eps))
        assert x.equal(kept[0])
        assert residual.equal(kept[1])


@pytest.mark.parametrize("size", [1024, 16385, 40000])
def test_sums_of_long_rows(size: int) -> None:
    """One block, two and three blocks; in 16 bits the sum is rounded before it is normed."""
    x, residual, weight = (random(2, size, dtype=torch.bfloat16) for _ in range(3))
    total = x + residual
    for found, expected in (
        (add_rms_norm(x, residual, weight[0], 1e-5), rms_norm(total, weight[0], 1e-5)),
        (add_layer_norm(x, residual, weight[0], None, 1e-5), layer_norm(total, weight[0], None, 1e-5)),
    ):
        assert found[0].equal(expected)
        assert found[1].equal(total)


def test_sums_of_heads_and_other_layouts() -> None:
    weight = random(12)[::2]
    for x in (random(6, 10).t()[:, :6], random(1, 6).expand(5, 6), random(4, 5, 18)[:, 1:4, 6:12]):
        residual = random(*x.shape)
        normed, total = add_rms_norm(x, residual, weight, 0.1)
        assert total.equal(x + residual)
        assert normed.equal(rms_norm(x + residual, weight, 0.1))


def test_rows_of_sums_do_not_mix() -> None:
    x, residual, weight = random(20, 24), random(20, 24), random(24)
    clean, dirty = [0, 2, *range(4, 20)], residual.clone()
    dirty[1], dirty[3] = float("nan"), float("inf")
    for found, expected in zip(
        add_rms_norm(x, dirty, weight, 0.1), add_rms_norm(x, residual, weight, 0.1), strict=True
    ):
        assert found[clean].equal(expected[clean])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize(
    ("tokens", "rows", "size"), [(5, 7, 33), (1, 1, 1), (0, 4, 8), (9, 3, 2049), (4, 5, 128)]
)
def test_embedding(dtype: torch.dtype, index_dtype: torch.dtype, tokens: int, rows: int, size: int) -> None:
    weight = random(rows, size, dtype=dtype)
    ids = torch.randint(0, rows, (tokens,), dtype=index_dtype)
    apart = ids.repeat_interleave(2)[::2].to(DEVICE)
    for table in (weight, with_gaps(weight), weight.t().contiguous().t()):
        for index in (ids.to(DEVICE), apart):
            found = embedding(index, table)
            assert found.is_contiguous()
            assert found.equal(weight[ids.long()])


def test_ids_out_of_range_give_nan() -> None:
    weight = random(7, 40)
    found = embedding(torch.tensor([3, -1, 7, 2**40, 0], device=DEVICE), weight)
    assert found[1:4].isnan().all()
    assert found[[0, 4]].equal(weight[[3, 0]])


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e4m3fn, torch.uint8])
def test_copied_blocks(dtype: torch.dtype) -> None:
    """Bit by bit, NaN too, and of bytes that are no multiple of a word."""
    cases = core_cases("copy_blocks", torch.float32)
    assert cases is not None
    for case in cases:
        cache, sources, destinations = case.arguments
        cache = cache.nan_to_num(1.0).to(dtype).to(DEVICE)
        expected = cache.view(torch.uint8).clone()
        expected[destinations] = expected[sources]
        assert copy_blocks(cache, sources.to(DEVICE), destinations.to(DEVICE)) is cache
        assert cache.view(torch.uint8).equal(expected)


def test_blocks_of_several_programs_and_of_a_view() -> None:
    memory = random(7, 4, 2, 1031)
    cache, kept = memory[1:], memory.clone()
    copy_blocks(cache, torch.tensor([0, 0], device=DEVICE), torch.tensor([5, 3], device=DEVICE))
    kept[[6, 4]] = kept[1].clone()
    assert memory.equal(kept)


def test_blocks_out_of_range_are_not_copied() -> None:
    cache = random(4, 3, 2, 5)
    kept = cache.clone()
    copy_blocks(cache, torch.tensor([-1, 4, 0], device=DEVICE), torch.tensor([1, 2, 4], device=DEVICE))
    assert cache.equal(kept)


def test_other_arguments_are_refused() -> None:
    x = random(2, 8).double()
    with pytest.raises(TypeError, match="not torch.float64"):
        add_rms_norm(x, x, x[0], 0.1)
    with pytest.raises(TypeError, match="not torch.float64"):
        embedding(torch.tensor([0], device=DEVICE), x)
    with pytest.raises(ShapeError, match="a KV cache is contiguous"):
        copy_blocks(random(4, 6).t(), torch.tensor([0]), torch.tensor([1]))


def test_offsets_beyond_31_bits(tmp_path: Path) -> None:
    """Rows and blocks 2**30 elements apart; the memory between is a hole in a file, or of a GPU."""
    apart = 2**30
    if DEVICE == "cpu":
        memory = torch.from_file(str(tmp_path / "hole"), True, 3 * apart, dtype=torch.float16)
    elif torch.cuda.mem_get_info()[0] < 10 << 30:
        pytest.skip("needs 10 GiB of free GPU memory")
    else:
        memory = torch.zeros(3 * apart, dtype=torch.float16, device=DEVICE)
    x = memory.as_strided((3, 32), (apart, 1))
    x.copy_(random(3, 32))
    near, weight = x.clone(), random(32, dtype=torch.float16)
    ids = torch.tensor([2, 0], device=DEVICE)
    assert embedding(ids, x).equal(near[[2, 0]])
    for found, expected in zip(
        add_rms_norm(x, x, weight, 0.1), add_rms_norm(near, near, weight, 0.1), strict=True
    ):
        assert found.equal(expected)
    if DEVICE != "cpu":  # a gigabyte a block is too much for the interpreter
        copy_blocks(memory.view(3, apart), ids[:1], ids[1:])
        assert x[0].equal(near[2])


@pytest.mark.gpu
def test_a_captured_graph_replays_new_inputs() -> None:
    x, weight, ids = random(4, 512), random(512), torch.tensor([1, 0, 3, 2], device=DEVICE)

    def step() -> Tensor:
        normed, total = add_rms_norm(embedding(ids, x), x, weight, 0.1)
        return normed + total

    values, expected = x.clone(), step()
    graph = torch.cuda.CUDAGraph()
    x.zero_()
    with torch.cuda.graph(graph):
        out = step()
    x.copy_(values)
    graph.replay()
    assert out.equal(expected)


@pytest.mark.nightly
@pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="the suite's tensors are on the CPU")
@pytest.mark.parametrize("op", ["add_rms_norm", "add_layer_norm", "embedding", "copy_blocks"])
def test_conformance(op: str) -> None:
    folder = op.removeprefix("add_")
    members = {
        "spec": core_spec(op),
        "implementation": f"quire_kernels.{folder}.triton:{op}",
        "dtypes": ("bfloat16",),
    }
    results = type("Triton", (OpConformance,), members).run(op)
    assert [result for result in results if result.status == "failed"] == []
    assert len(results) == 6
