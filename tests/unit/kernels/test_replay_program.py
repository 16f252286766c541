"""Recorded calls run again: for any number of tokens the bits that the kernels give one by one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_cases import NUM_TOKENS, SIZE, failing_kernel, record
from torch import Tensor

from quire.api.errors import CaptureError
from quire_kernels.embedding.native import Gather, gather
from quire_kernels.native.kernel import SharedArguments
from quire_kernels.replay.program import Program
from quire_kernels.replay.recorder import Recorder
from quire_kernels.rms_norm.native import rms_norm
from quire_kernels.rotary.native import rotary
from quire_kernels.silu_and_mul.native import silu_and_mul

MAX_TOKENS = 64
DTYPES = (torch.float32, torch.bfloat16)
IDS = torch.zeros(MAX_TOKENS, dtype=torch.int64)
ANGLES = {dtype: torch.randn(100, 4).to(dtype) for dtype in DTYPES}
TABLES = {dtype: torch.randn(100, 2 * SIZE).to(dtype) for dtype in DTYPES}
WEIGHTS = {dtype: torch.randn(SIZE).to(dtype) for dtype in DTYPES}


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def draw_ids(seed: int) -> None:
    IDS.copy_(torch.randint(100, (MAX_TOKENS,), generator=torch.Generator().manual_seed(seed)))


def compute(num_tokens: int, dtype: torch.dtype) -> Tensor:
    """Views, several rows a token, sums, products, rows of tables, work in place: [T, SIZE]."""
    ids = IDS[:num_tokens]
    wide = TABLES[dtype][ids]
    first, second = wide.split(SIZE, dim=1)
    x = rms_norm(second, WEIGHTS[dtype], 1e-5) + silu_and_mul(wide)
    heads = x.view(num_tokens, 3, SIZE // 3)
    cos, sin = ANGLES[dtype][ids], ANGLES[dtype].index_select(0, ids)
    query, key = rotary(heads[:, :2], heads[:, 2:], cos, sin, interleaved=False)
    assert query.data_ptr() == x.data_ptr() and key.data_ptr() != x.data_ptr()
    for _ in range(3):
        x = x + rms_norm(x.view(num_tokens, 2, -1), WEIGHTS[dtype][: SIZE // 2], 1e-5).view(num_tokens, SIZE)
    return x * first


def recorded(dtype: torch.dtype = torch.float32) -> Program:
    return record(lambda: compute(NUM_TOKENS, dtype), max_tokens=MAX_TOKENS)


def plain(num_tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    with torch.inference_mode():
        return compute(num_tokens, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_tokens(dtype: torch.dtype) -> None:
    draw_ids(0)
    program = recorded(dtype)
    assert program.num_calls > 5
    for num_tokens in [*range(1, MAX_TOKENS + 1), 1, MAX_TOKENS, 2]:
        result = program.run(num_tokens)
        assert result.shape == (num_tokens, SIZE) and result.dtype == dtype
        assert result.equal(plain(num_tokens, dtype)), f"{num_tokens} tokens"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, MAX_TOKENS), st.integers(0, 99), st.integers(1, 4)), max_size=8))
def test_runs_in_any_order_of_sizes_inputs_and_threads(runs: list[tuple[int, int, int]]) -> None:
    draw_ids(0)
    program = recorded()
    for num_tokens, seed, num_threads in runs:
        draw_ids(seed)
        torch.set_num_threads(num_threads)
        assert program.run(num_tokens).equal(plain(num_tokens))


def test_one_size_has_the_same_addresses_in_every_run() -> None:
    program = recorded()
    seen: dict[int, bytes] = {}
    for num_tokens in (5, 13, 5, 64, 13, 1, 5, 64, 1):
        program.run(num_tokens)
        assert program.addresses() == seen.setdefault(num_tokens, program.addresses())
    assert len(set(seen.values())) == len(seen)


def test_few_tokens_lie_close_together() -> None:
    program = recorded()
    few, many = (program.run(size).data_ptr() - program._base for size in (1, MAX_TOKENS))
    assert 0 <= few <= program.bytes_per_token and many <= MAX_TOKENS * program.bytes_per_token


def test_trim_keeps_the_last_result() -> None:
    program = recorded()
    kept = program.run(20)
    copy = kept.clone()
    program.trim()
    draw_ids(1)
    assert program.run(20).equal(plain(20)) and program.run(3).equal(plain(3))
    assert kept.equal(copy)


@pytest.mark.parametrize("num_tokens", [0, -1, MAX_TOKENS + 1])
def test_a_size_out_of_range(num_tokens: int) -> None:
    program = recorded()
    program.run(4)
    with pytest.raises(ValueError, match=f"{num_tokens} tokens: this program is for 1 to {MAX_TOKENS}"):
        program.run(num_tokens)
    assert program.run(4).equal(plain(4))


def test_what_a_run_is_given() -> None:
    draw_ids(2)
    hidden, rows = torch.randn(100, SIZE), IDS[:NUM_TOKENS]
    recorder = Recorder(NUM_TOKENS, given=hidden)
    with torch.inference_mode(), recorder:
        result = rms_norm(hidden[rows], WEIGHTS[torch.float32], 1e-5)
    program = Program(recorder, result, (), MAX_TOKENS)
    for num_rows in (1, 13, 40):
        other = torch.randn(100, SIZE)
        expected = rms_norm(other[IDS[:num_rows]], WEIGHTS[torch.float32], 1e-5)
        assert program.run(num_rows, given=other).equal(expected)


class _Numbers(ctypes.Structure):
    _fields_ = [("values", ctypes.c_int64 * 8)]


def test_what_layers_share_is_copied() -> None:
    zeros, out_of = (
        torch.zeros(MAX_TOKENS, dtype=torch.int64),
        SharedArguments(_Numbers((ctypes.c_int64 * 8)(*range(8)))),
    )

    def run() -> Tensor:
        out = torch.empty(NUM_TOKENS, 4, dtype=torch.int64)
        table = ctypes.addressof(out_of.arguments)
        gather(Gather(table, zeros.data_ptr(), out.data_ptr(), NUM_TOKENS, 32, 1))
        return out

    recorder = Recorder(NUM_TOKENS, out_of)
    with torch.inference_mode(), recorder:
        result = run()
    assert recorder.calls[0].shared_offset == 0
    program = Program(recorder, result, (), MAX_TOKENS)
    for first in (10, 70):
        step = SharedArguments(_Numbers((ctypes.c_int64 * 8)(*range(first, first + 8))))
        before = program.run(2, step.arguments)
        step.arguments.values[0] = -1
        assert before.tolist() == [[first, first + 1, first + 2, first + 3]] * 2
        del step
        assert program.run(5, None).tolist() == [[first, first + 1, first + 2, first + 3]] * 5


def layered(num_layers: int = 3) -> tuple[Program, list[int]]:
    recorder = Recorder(NUM_TOKENS)
    marks = []
    with torch.inference_mode(), recorder:
        x = TABLES[torch.float32][IDS[:NUM_TOKENS]]
        for _ in range(num_layers):
            marks.append(len(recorder.calls))
            x = x + x
    return Program(recorder, x, marks, MAX_TOKENS), marks


def test_after_layer_is_called_after_each_layer() -> None:
    program, marks = layered()
    assert marks == [1, 2, 3]
    seen: list[int] = []
    result = program.run(7, after_layer=lambda: seen.append(len(seen)))
    assert result.equal(8 * TABLES[torch.float32][IDS[:7]])
    assert len(seen) == 4  # the embedding, and each layer


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_an_interrupt_between_layers_leaves_a_right_program(at: int) -> None:
    program, _ = layered()
    program.run(20)
    count = 0

    def interrupt() -> None:
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        program.run(7, after_layer=interrupt)
    for num_tokens in (7, 20, 7):
        assert program.run(num_tokens).equal(8 * TABLES[torch.float32][IDS[:num_tokens]])


def test_a_kernel_without_memory(threads: int) -> None:
    answers: list[int] = []

    def answer() -> int:
        answers.append(1)
        return is_short

    kernel, is_short = failing_kernel(answer), 1

    def run() -> Tensor:
        out = torch.empty(NUM_TOKENS, 2 * SIZE)
        table = TABLES[torch.float32]
        kernel(
            Gather(
                table.data_ptr(), IDS.data_ptr(), out.data_ptr(), NUM_TOKENS, 8 * SIZE, len(table), threads
            )
        )
        return out + out

    program = record(run)
    with pytest.raises(MemoryError, match="no memory for a replayed step of 9 tokens"):
        program.run(9)
    assert len(answers) == threads
    is_short = 0
    assert program.run(9).shape == (9, 2 * SIZE)


GIVERS: dict[str, Callable[[Tensor], Tensor]] = {
    "a tensor of before": lambda x: TABLES[torch.float32],
    "a column": lambda x: x[:, :4],
    "the later columns": lambda x: x[:, 4:],
    "transposed": lambda x: x.t(),
}


@pytest.mark.parametrize("name", GIVERS)
def test_the_result_is_a_whole_buffer(name: str) -> None:
    with pytest.raises(CaptureError, match="^what the model gave.* is not "):
        record(lambda: GIVERS[name](compute(NUM_TOKENS, torch.float32)))


def test_an_index_out_of_range_is_told() -> None:
    ids = IDS.clone()
    program = record(lambda: TABLES[torch.float32].index_select(0, ids[:NUM_TOKENS]))
    for wrong in (-1, len(TABLES[torch.float32])):
        ids[1] = wrong
        with pytest.raises(IndexError, match="a replayed step of 3 tokens: an index is out of range"):
            program.run(3)
    ids[1] = 0
    assert program.run(3).equal(TABLES[torch.float32][ids[:3]])
