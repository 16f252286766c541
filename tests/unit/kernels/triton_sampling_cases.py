"""Cases of sampling in Triton, on a GPU or, where TRITON_INTERPRET=1 is set, in Triton's interpreter.

Triton reads that variable when kernels are defined: `test_triton_sampling.py` runs this file in a process of its own.
"""

from __future__ import annotations

import pytest
import torch
import triton
from sampling_cases import DTYPES, Params, penalties, random_rows, special_rows, tensors
from torch import Tensor

from quire.ops import sampling as reference
from quire.testing import OpConformance
from quire.testing.op_suite import core_spec
from quire_kernels.sampling import triton as sampling

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory", "mended_interpreter"),
    pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered"),  # numpy's
]

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"


def assert_equal_to_the_reference(logits: Tensor, rows: list[Params], name: str = "") -> None:
    expected = reference.sample_tokens(logits, *tensors(rows))
    there = logits.to(DEVICE)
    assert sampling.sample_tokens(there, *tensors(rows, DEVICE)).tolist() == expected.tolist(), name
    assert sampling.greedy_tokens(there).tolist() == reference.greedy_tokens(logits).tolist(), name
    assert there.cpu().nan_to_num(7.0).equal(logits.nan_to_num(7.0))


@pytest.mark.parametrize("capacity", [8192, 4])
@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1, torch.float32), (7, torch.bfloat16), (257, torch.float16), (1500, torch.float32)],
)
def test_any_parameters(
    size: int, dtype: torch.dtype, capacity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all candidates in the list, and with too many for it."""
    monkeypatch.setattr(sampling, "_CAPACITY", capacity)
    for seed in range(4):
        logits, rows = random_rows(size, 5, seed)
        assert_equal_to_the_reference(logits.to(dtype), rows)


@pytest.mark.parametrize("size", [3 * 4096 + 1, pytest.param(50257, marks=pytest.mark.nightly)])
def test_a_large_vocabulary(size: int) -> None:
    """Of several blocks, the last one of a single token, and more candidates than the list has places."""
    logits, _ = random_rows(size, 5, 4)
    rows = [
        Params(1.0, draw=0.3),
        Params(0.0),
        Params(0.7, 0.0, 50, 0.9, 0.8),
        Params(1.2, 0.0, 0, 0.7, 0.6),
        Params(1.0, 0.0, 5000, 1.0, 0.9),
    ]
    assert_equal_to_the_reference(logits.bfloat16(), rows)


@pytest.mark.parametrize("capacity", [8192, 4])
@pytest.mark.parametrize("size", [1, 7, 1030])
def test_special_rows(size: int, capacity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_CAPACITY", capacity)
    for name, logits, rows in special_rows(size):
        assert_equal_to_the_reference(logits, rows, name)


def test_rows_do_not_depend_on_each_other_or_on_strides() -> None:
    logits, rows = random_rows(600, 6, 3)
    params = tensors(rows, DEVICE)
    there = logits.to(DEVICE)
    together = sampling.sample_tokens(there, *params)
    for index in range(6):
        one = slice(index, index + 1)
        assert sampling.sample_tokens(there[one], *(x[one] for x in params)).equal(together[one])
    wide = torch.full((6, 700), torch.nan, device=DEVICE)
    wide[:, 50:650] = there
    for same in (wide[:, 50:650], there.t().contiguous().t()):
        assert sampling.sample_tokens(same, *params).equal(together)


@pytest.mark.parametrize("lengths", [[3, 0, 7, 1], [0], [700, 512]])
def test_penalties(lengths: list[int]) -> None:
    logits, *rest = penalties(max(7, *lengths), lengths, 0)
    expected = reference.apply_penalties(logits.clone(), *rest)
    found = logits.to(DEVICE)
    assert sampling.apply_penalties(found, *(x.to(DEVICE) for x in rest)) is found
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=1e-6)


def test_no_rows() -> None:
    logits = torch.empty(0, 9, device=DEVICE)
    assert sampling.greedy_tokens(logits).shape == (0,)
    assert sampling.sample_tokens(logits, *tensors([], DEVICE)).shape == (0,)
    assert sampling.apply_penalties(logits, *(x.to(DEVICE) for x in penalties(9, [], 0)[1:])) is logits


def test_other_dtypes_are_refused() -> None:
    logits = torch.zeros(1, 8, dtype=torch.float64, device=DEVICE)
    with pytest.raises(TypeError, match="not torch.float64"):
        sampling.greedy_tokens(logits)
    with pytest.raises(TypeError, match="not torch.float64"):
        sampling.sample_tokens(logits, *tensors([Params()], DEVICE))
    with pytest.raises(TypeError, match="take float32, not torch.float64"):
        sampling.apply_penalties(logits, *(x.to(DEVICE) for x in penalties(8, [1], 0)[1:]))


@pytest.mark.nightly
@pytest.mark.skipif(DEVICE != "cpu", reason="the suite's tensors are on the CPU")
@pytest.mark.parametrize("op", ["apply_penalties", "greedy_tokens", "sample_tokens"])
def test_conformance(op: str) -> None:
    members = {
        "spec": core_spec(op),
        "implementation": f"quire_kernels.sampling.triton:{op}",
        "dtypes": ("float32",),
    }
    results = type("Triton", (OpConformance,), members).run(op)
    assert [result for result in results if result.status != "passed"] == []
    assert len(results) == 6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("size", [32000, 128256, 151936])
def test_vocabularies_of_models(dtype: torch.dtype, size: int) -> None:
    for seed in range(20):
        logits, rows = random_rows(size, 16, seed)
        assert_equal_to_the_reference(logits.to(dtype), rows)


@pytest.mark.gpu
def test_captured_graphs_replay_new_inputs() -> None:
    cases = [random_rows(50257, 8, seed) for seed in (4, 5)]
    logits, params = cases[0][0].to(DEVICE), tensors(cases[0][1], DEVICE)
    sampling.sample_tokens(logits, *params)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = sampling.sample_tokens(logits, *params)
    for other, rows in cases:
        logits.copy_(other)
        for into, value in zip(params, tensors(rows), strict=True):
            into.copy_(value)
        graph.replay()
        assert out.tolist() == reference.sample_tokens(other, *tensors(rows)).tolist()
