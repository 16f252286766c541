"""Rows whose contexts begin alike: attended once for all of them, and equal to the naive oracle."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from quire.api.batch import DeviceInfo
from quire.api.protocols import AttentionParams
from quire.testing.attention_cases import CacheShape, PagedSimulation
from quire_kernels.native import bfloat16

REFUSAL = bfloat16.bfloat16_refusal(DeviceInfo("cpu"), "bfloat16")
if REFUSAL is not None:
    pytest.skip(REFUSAL, allow_module_level=True)

from quire_kernels.paged_attention.native import NativePagedAttention, NativeStep  # noqa: E402  # it binds the library
from quire_kernels.paged_attention.tasks import MAX_USERS, cut_contexts, find_shared  # noqa: E402  # likewise

LIMITS = range(bfloat16.DOT_PRODUCTS, bfloat16.instructions() + 1)


class Watched(NativePagedAttention):
    """Counts the pieces that its steps share."""

    num_shared = 0

    def prepare(self, batch: object) -> NativeStep:
        step = super().prepare(batch)  # type: ignore[arg-type]  # a ForwardBatch
        self.num_shared += step.arguments.num_shared
        return step


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("heads", [(9, 3, 64), (4, 4, 40), (8, 1, 128), (7, 1, 96)], ids=str)
def test_shared_beginnings_equal_the_oracle(limit: int, block_size: int, heads: tuple[int, int, int]) -> None:
    backend = Watched(limit)
    params = AttentionParams(*heads, scale=heads[2] ** -0.5)
    shape = CacheShape(block_size=block_size, num_blocks=1400 // block_size, dtype=torch.bfloat16)
    simulation = PagedSimulation(backend, [params, params], shape)
    simulation.step([("first", 340)])
    owners = {f"r{index}": ("first", 336) for index in range(5)}
    simulation.step([(name, 2 + index) for index, name in enumerate(owners)], shared=owners)
    simulation.step([("other", 150)])
    more = {f"s{index}": ("other", 144) for index in range(3)}
    simulation.step([(name, 1) for name in more], shared=more)
    rows = [(name, 1) for name in ("s0", "r3", "first", "r1", "other", "r0", "s1", "r4", "s2", "r2")]
    assert backend.num_shared == 0
    for _ in range(2):
        found, expected = simulation.step(rows)
        for result, right in zip(found, expected, strict=True):
            torch.testing.assert_close(result.double(), right, atol=3e-2, rtol=3e-2)
    assert backend.num_shared == 2 * 3, "336 tokens in two pieces, 128 in one"
    mixed, expected = simulation.step([*rows, ("new", 40)])
    torch.testing.assert_close(mixed[0].double(), expected[0], atol=3e-2, rtol=3e-2)
    assert backend.num_shared == 3 * 3


@pytest.mark.parametrize(
    "params",
    [
        AttentionParams(4, 2, 32, 0.2, window=50),
        AttentionParams(4, 2, 32, 0.2, alibi_slopes=(0.5, 0.25, 0.1, 0.0)),
        AttentionParams(4, 2, 32, 0.2, logit_cap=4.0),
    ],
    ids=["window", "alibi", "cap"],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_biased_layers_and_float32_share_nothing(params: AttentionParams, dtype: torch.dtype) -> None:
    plain = AttentionParams(4, 2, 32, 0.2)
    for layers in ([plain, params],) if dtype == torch.bfloat16 else ([plain],):
        backend = Watched()
        simulation = PagedSimulation(backend, layers, CacheShape(16, 60, dtype))
        simulation.step([("a", 200)])
        names = {f"b{index}": ("a", 192) for index in range(6)}
        simulation.step([(name, 1) for name in names], shared=names)
        found, expected = simulation.step([(name, 1) for name in names])
        torch.testing.assert_close(found[-1].double(), expected[-1], atol=3e-2, rtol=3e-2)
        assert backend.num_shared == 0


def tables_of(rows: list[list[int]]) -> np.ndarray:
    width = max(map(len, rows))
    return np.array([row + [0] * (width - len(row)) for row in rows], dtype=np.int32)


def test_what_is_shared() -> None:
    common = list(range(10, 26))
    rows = [[*common, 100 + index] for index in range(5)] + [[7, 8], [9]]
    found = find_shared(tables_of(rows), [260, 257, 272, 261, 258, 20, 3], 16)
    assert found is not None
    assert found.tasks.tolist() == [[0, 5, 0, 256]]
    assert sorted(found.users[:, 0].tolist()) == [0, 1, 2, 3, 4]
    assert found.starts.tolist() == [256] * 5 + [0, 0] and found.counts.tolist() == [1] * 5 + [0, 0]
    tasks, merges, num_partials = cut_contexts([260, 257, 272, 261, 258, 20, 3], 2, found)
    assert num_partials == 10 and sorted(merges[:, 0].tolist()) == [0, 1, 2, 3, 4]
    used = [*found.users[:, 1].tolist(), *(int(task[3]) for task in tasks if task[3] >= 0)]
    assert sorted(used) == list(range(10)), "every partial result has one writer"
    covered = {int(row): (int(first), int(last)) for row, first, last, _ in tasks}
    assert covered[0] == (256, 260) and covered[5] == (0, 20)


def test_what_is_not_shared() -> None:
    common = list(range(10, 26))
    rows = [[*common, 100 + index] for index in range(4)]
    lengths = [260] * 4
    assert find_shared(tables_of(rows), lengths, 16) is not None
    assert find_shared(tables_of(rows[:3]), lengths[:3], 16) is None, "too few rows"
    short = [row[:7] + [index] for index, row in enumerate(rows)]
    assert find_shared(tables_of(short), [115] * 4, 16) is None, "too few tokens"
    drafts = [[*common, 100]] * 6
    assert find_shared(tables_of(drafts), [260, 261, 262, 263, 264, 265], 16) is None, "drafts of one request"
    other = [[90 + index, *common[1:], 100 + index] for index in range(4)]
    assert find_shared(tables_of(other), lengths, 16) is None, "they begin otherwise"


def test_many_users_are_cut() -> None:
    rows = [[*range(12), 100 + index] for index in range(MAX_USERS + 5)]
    found = find_shared(tables_of(rows), [200] * len(rows), 16)
    assert found is not None
    assert [task[1] for task in found.tasks.tolist()] == [MAX_USERS, 5]


def test_outliers_do_not_switch_sharing_off() -> None:
    common = list(range(10, 26))
    rows = [[*common, 100 + index] for index in range(5)]
    rows += [[10, *range(200, 215), 300], common[:6], [*common[:4], 60]]
    found = find_shared(tables_of(rows), [260] * 5 + [260, 90, 70], 16)
    assert found is not None
    assert found.starts.tolist() == [256] * 5 + [0] * 3


def test_drafts_over_the_end_of_a_block_are_drafts() -> None:
    common = list(range(10, 26))
    pairs = [[*common, 100 + index, 200 + index] for index in range(2) for _ in range(2)]
    assert find_shared(tables_of(pairs), [272, 273, 272, 273], 16) is None
