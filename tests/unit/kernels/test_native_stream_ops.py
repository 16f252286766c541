"""The native ops that add to the stream and norm it, look rows up, and copy blocks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from quire.api.batch import DeviceInfo
from quire.api.errors import ShapeError
from quire_kernels.native.library import native_refusal

REFUSAL = native_refusal(DeviceInfo("cpu"), "float32")
if REFUSAL is not None:
    pytest.skip(REFUSAL, allow_module_level=True)

from quire_kernels.copy_blocks.native import copy_blocks  # noqa: E402  # it binds the library when imported
from quire_kernels.embedding.native import embedding  # noqa: E402  # likewise
from quire_kernels.layer_norm.native import add_layer_norm, layer_norm  # noqa: E402  # likewise
from quire_kernels.rms_norm.native import add_rms_norm, rms_norm  # noqa: E402  # likewise

DTYPES = [torch.bfloat16, torch.float32]


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8), (5, 33), (64, 576), (2, 3, 64), (0, 64), (1, 1), (3, 4099)])
def test_a_sum_and_its_norm_are_the_bits_of_both(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """In bfloat16 the sum is rounded before it is normed; the arguments stay as they were."""
    x, residual = (torch.randn(shape).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(shape[-1]).to(dtype) for _ in range(2))
    kept, total = (x.clone(), residual.clone()), x + residual
    for found, expected in (
        (add_rms_norm(x, residual, weight, 1e-5), rms_norm(total, weight, 1e-5)),
        (add_layer_norm(x, residual, weight, bias, 1e-5), layer_norm(total, weight, bias, 1e-5)),
        (add_layer_norm(x, residual, weight, None, 1e-5), layer_norm(total, weight, None, 1e-5)),
    ):
        assert found[0].equal(expected)
        assert found[1].equal(total)
    assert x.equal(kept[0])
    assert residual.equal(kept[1])


def test_sums_of_columns_and_of_a_tensor_with_itself() -> None:
    wide, weight = torch.randn(7, 100).bfloat16(), torch.randn(50).bfloat16()
    x, residual = wide[:, 20:70], wide[:, 50:]
    for other in (residual, x, wide[:, ::2]):
        normed, total = add_rms_norm(x, other, weight, 1e-5)
        assert total.equal(x + other)
        assert normed.equal(rms_norm(x + other, weight, 1e-5))


def test_sums_that_are_not_finite_stay_in_their_rows() -> None:
    x, residual, weight = torch.randn(4, 40), torch.randn(4, 40), torch.ones(40)
    expected = add_rms_norm(x, residual, weight, 1e-5)[0]
    residual[1, 3], residual[2, 5] = torch.nan, torch.inf
    normed, total = add_rms_norm(x, residual, weight, 1e-5)
    assert normed[[0, 3]].equal(expected[[0, 3]])
    assert normed[1].isnan().all()
    assert total[1].isnan().sum() == 1
    assert total[2, 5] == torch.inf


@pytest.mark.parametrize("wrong", [-1, 7, 2**40, -(2**62)])
def test_an_id_out_of_range_is_told(wrong: int) -> None:
    weight, ids = torch.randn(7, 5), torch.tensor([3, 0, 6])
    assert embedding(ids, weight).equal(weight[ids])
    ids[1] = wrong
    with pytest.raises(IndexError, match="an index is out of range"):
        embedding(ids, weight)


@pytest.mark.parametrize("block", [(16, 8, 64), (1, 1, 1), (33, 6, 80)])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8])
def test_many_blocks(block: tuple[int, ...], dtype: torch.dtype) -> None:
    """Of one piece and of several; nothing else changes."""
    cache = (torch.rand(20, *block) * 200).to(dtype)
    ids = torch.randperm(20)
    expected = cache.clone()
    expected[ids[:9]] = cache[ids[9:18]]
    assert copy_blocks(cache, ids[9:18], ids[:9]) is cache
    assert cache.equal(expected)


@pytest.mark.parametrize("pair", [(-1, 0), (0, -1), (4, 0), (0, 4), (2**40, 0)])
def test_a_wrong_block_is_told_and_nothing_is_copied(pair: tuple[int, int]) -> None:
    cache = torch.randn(4, 3, 2, 5)
    kept = cache.clone()
    with pytest.raises(IndexError, match="an index is out of range"):
        copy_blocks(cache, torch.tensor([1, pair[0]]), torch.tensor([2, pair[1]]))
    assert cache.equal(kept)


def test_caches_with_gaps_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"contiguous; this one is \[6, 4\], strides \(1, 6\)"):
        copy_blocks(torch.randn(4, 6).t(), torch.tensor([0]), torch.tensor([1]))
