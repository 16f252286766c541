"""What a recorder writes down of native and of torch's calls, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from replay_cases import NUM_TOKENS, SIZE
from torch import Tensor

from quire.api.errors import CaptureError
from quire_kernels.native.kernel import recording
from quire_kernels.replay.recorder import Recorder
from quire_kernels.rms_norm.native import rms_norm
from quire_kernels.rotary.native import rotary
from quire_kernels.silu_and_mul.native import silu_and_mul

WEIGHT = torch.randn(SIZE)
TABLE = torch.randn(40, SIZE)
ANGLES = torch.randn(40, 4)
IDS = torch.randint(40, (2 * NUM_TOKENS,))


def written_down(run: Callable[[], object]) -> Recorder:
    recorder = Recorder(NUM_TOKENS)
    with torch.inference_mode(), recorder:
        run()
    return recorder


def embedded() -> Tensor:
    return TABLE[IDS[:NUM_TOKENS]]


def test_calls_and_what_they_work_on() -> None:
    recorder = written_down(lambda: silu_and_mul(rms_norm(embedded(), WEIGHT, 1e-5)))
    assert [call.kernel.name for call in recorder.calls] == ["gather", "rms_norm", "silu_and_mul"]
    assert [(buffer.first, buffer.last) for buffer in recorder.buffers] == [(0, 1), (1, 2), (2, 2)]
    assert [buffer.num_bytes for buffer in recorder.buffers] == [NUM_TOKENS * SIZE * n for n in (4, 4, 2)]
    assert [call.rows_per_token for call in recorder.calls] == [1, 1, 1]
    assert all(call.rows_offset is not None and call.shared_offset is None for call in recorder.calls)


def test_views_cost_nothing_and_keep_their_place() -> None:
    def run() -> None:
        first, second = embedded().view(NUM_TOKENS, 2, SIZE // 2).unbind(1)
        rms_norm(second.unsqueeze(0).squeeze(0).expand(NUM_TOKENS, SIZE // 2), WEIGHT[: SIZE // 2], 1e-5)
        rms_norm(first.split(SIZE // 4, dim=1)[1], WEIGHT[: SIZE // 4], 1e-5)

    recorder = written_down(run)
    assert [call.kernel.name for call in recorder.calls] == ["gather", "rms_norm", "rms_norm"]
    places = [{pointer.offset for pointer in call.pointers if pointer.buffer == 0} for call in recorder.calls]
    assert places == [{0}, {SIZE // 2 * 4}, {SIZE // 4 * 4}]


def test_several_rows_a_token() -> None:
    recorder = written_down(lambda: rms_norm(embedded().view(NUM_TOKENS, 3, -1), WEIGHT[:8], 1e-5))
    assert recorder.calls[1].rows_per_token == 3


def test_memory_that_no_call_uses() -> None:
    recorder = written_down(lambda: torch.empty(NUM_TOKENS, 3))
    assert [(buffer.first, buffer.last) for buffer in recorder.buffers] == [(-1, -1)]


def rotate(tokens: slice) -> None:
    heads = embedded().view(NUM_TOKENS, 3, 8)[tokens]
    rotary(heads, heads, ANGLES[: len(heads)], ANGLES[: len(heads)], interleaved=False)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "tokens after the first ones": (lambda: rotate(slice(None, 8)), "8 rows of rotary in a step of 13"),
    "no tokens": (lambda: rotate(slice(0, 0)), "0 rows of rotary"),
    "results of some tokens": (lambda: rms_norm(embedded()[5:], WEIGHT, 1e-5), r"room for \[8, 24\] values"),
    "the second half of rows": (
        lambda: rms_norm(TABLE[IDS][NUM_TOKENS:], WEIGHT, 1e-5),
        "rms_norm of a part of the tokens",
    ),
    "room for one token": (lambda: torch.empty(SIZE - 1), r"room for \[23\] values in a step of 13 tokens"),
    "an unknown call": (lambda: torch.cumsum(embedded(), 0), r"torch's aten.cumsum.default"),
    "a copy": (lambda: embedded().t().contiguous(), "a copy of torch.float32"),
    "another dtype": (lambda: embedded().double(), r"torch's aten.to.dtype"),
    "zeros": (lambda: torch.zeros(NUM_TOKENS, 3), r"torch's aten.zeros.default"),
    "in place": (lambda: embedded().add_(1), r"torch's aten.add_.Tensor"),
    "into a part": (lambda: embedded()[:, :3].zero_(), r"torch's aten.zero_.default"),
    "into out": (
        lambda: torch.add(embedded(), 1, out=torch.empty(NUM_TOKENS, SIZE)),
        r"torch's aten.add.out",
    ),
    "a sum with a number": (lambda: embedded() + 1, r"a sum or product of torch.float32 \[13, 24\] and 1"),
    "a sum of two shapes": (lambda: embedded() + WEIGHT, r"\[13, 24\] and torch.float32 \[24\]"),
    "a sum of integers": (
        lambda: IDS[:NUM_TOKENS] + IDS[:NUM_TOKENS],
        r"aten.add.Tensor cannot be recorded.*int64",
    ),
    "a scaled sum": (lambda: torch.add(embedded(), embedded(), alpha=2), "times 2"),
    "a sum of columns": (lambda: embedded().t() + embedded().t(), r"strides \(1, 24\)"),
    "a mask": (lambda: TABLE[torch.empty(NUM_TOKENS, dtype=torch.bool)], "taking rows torch.bool"),
    "columns by index": (lambda: TABLE.index_select(1, IDS[:NUM_TOKENS]), "index_select along dimension 1"),
    "two indices": (lambda: TABLE[IDS[:NUM_TOKENS], IDS[:NUM_TOKENS]], "indexing by more than one tensor"),
    "item": (lambda: IDS[0].item(), r"torch's aten.item.default"),
    "a branch": (lambda: bool(IDS[0] > 3), r"torch's aten.gt.Scalar"),
    "tolist": (lambda: IDS.tolist(), "reading a tensor's values on the host"),
    "numpy": (lambda: IDS.numpy(), "reading a tensor's values on the host"),
    "asarray": (lambda: np.asarray(IDS), "reading a tensor's values on the host"),
    "a new tensor": (lambda: torch.tensor([1, 2]), "a tensor made of the host's values"),
    "an array as a tensor": (lambda: torch.from_numpy(np.ones(3)), "a tensor made of the host's values"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_replayed_is_refused_by_name(name: str) -> None:
    run, message = REFUSED[name]
    with pytest.raises(CaptureError, match=message):
        written_down(run)
    assert recording() is None
    assert len(written_down(lambda: rms_norm(embedded(), WEIGHT, 1e-5)).calls) == 2


def test_what_is_given_is_read_from_its_start_alone() -> None:
    hidden = torch.randn(NUM_TOKENS, SIZE)
    recorder = Recorder(NUM_TOKENS, given=hidden)
    with torch.inference_mode(), recorder:
        rms_norm(hidden, WEIGHT, 1e-5)
        with pytest.raises(CaptureError, match="rms_norm of a part of the tokens"):
            rms_norm(hidden[:, 4:], WEIGHT[4:], 1e-5)
    assert recorder.buffers[0].is_given and recorder.calls[0].pointers[0].buffer == 0


def test_nothing_is_written_down_outside() -> None:
    recorder = written_down(embedded)
    with torch.inference_mode():
        rms_norm(embedded(), WEIGHT, 1e-5)
    assert len(recorder.calls) == 1
