"""Ways in which a replayed step could be wrong without a word: a model that takes one is not replayed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
import torch
from replay_cases import SIZE, NativeModel, capture
from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.errors import CaptureError, ShapeError
from quire_kernels.native.kernel import recording
from quire_kernels.rms_norm.native import rms_norm


def baked_in_branch(x: Tensor, batch: ForwardBatch) -> Tensor:
    return x if batch.num_tokens > 30 else x + x


def baked_in_decodes(x: Tensor, batch: ForwardBatch) -> Tensor:
    return x + x if batch.num_decode_rows else x


def baked_in_first_rows(x: Tensor, batch: ForwardBatch) -> Tensor:
    """Rows by an index that is the batch's, but ends where the recorded one ended."""
    return x[batch.logits_rows.as_strided((batch.num_tokens,), (0,))]


def unseen_call(x: Tensor, batch: ForwardBatch) -> Tensor:
    """Memory written by nobody whom the recorder knows."""
    out = torch.empty(x.shape)
    ctypes.memmove(out.data_ptr(), x.data_ptr(), x.nbytes)
    return out + out


def freed_temporary(x: Tensor, batch: ForwardBatch) -> Tensor:
    return rms_norm(x, torch.tensor([float(i) for i in range(SIZE)]), 1e-5)


def freed_array(x: Tensor, batch: ForwardBatch) -> Tensor:
    return rms_norm(x, torch.from_numpy(np.ones(SIZE, dtype=np.float32)), 1e-5)


def host_read(x: Tensor, batch: ForwardBatch) -> Tensor:
    return x if max(batch.positions.tolist()) > 1000 else x + x


def host_array(x: Tensor, batch: ForwardBatch) -> Tensor:
    return x if batch.positions.numpy().max() > 1000 else x + x


def host_scalar(x: Tensor, batch: ForwardBatch) -> Tensor:
    return x if int(batch.positions[0]) > 1000 else x + x


def lengths(x: Tensor, batch: ForwardBatch) -> Tensor:
    return x if max(batch.context_lens) > 1000 else x + x


def queries(x: Tensor, batch: ForwardBatch) -> Tensor:
    return x if sum(batch.query_lens) > 1000 else x + x


def requests(x: Tensor, batch: ForwardBatch) -> Tensor:
    return x if batch.num_requests > 1000 else x + x


def failing_while_recorded(x: Tensor, batch: ForwardBatch) -> Tensor:
    if recording() is not None:
        raise ShapeError("not today")
    return x


WRONG: dict[str, tuple[Callable[[Tensor, ForwardBatch], Tensor], str]] = {
    "a branch by the number of tokens": (
        baked_in_branch,
        "hidden states of a replayed step of 4 rows differ",
    ),
    "a branch by the number of decodes": (
        baked_in_decodes,
        "hidden states of a replayed step of 1 rows differ",
    ),
    "rows of the recorded step": (baked_in_first_rows, "taking rows|strides|differ"),
    "a call that nobody sees": (unseen_call, "hidden states of a replayed step of 1 rows differ"),
    "a temporary tensor": (freed_temporary, "a tensor made of the host's values"),
    "a temporary array": (freed_array, "a tensor made of the host's values"),
    "tolist": (host_read, "reading a tensor's values on the host"),
    "numpy": (host_array, "reading a tensor's values on the host"),
    "int": (host_scalar, "torch's aten.item.default"),
    "context_lens": (lengths, "reading a batch's query_lens, context_lens or num_requests"),
    "query_lens": (queries, "reading a batch's query_lens, context_lens or num_requests"),
    "an error that the plain run has not": (
        failing_while_recorded,
        "recorded, the model raised ShapeError: not today",
    ),
    "num_requests": (requests, "reading a batch's query_lens, context_lens or num_requests"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_would_be_wrong_is_not_replayed(name: str) -> None:
    run, message = WRONG[name]
    captured = capture(NativeModel(run))
    assert captured.steps is None
    with pytest.raises(CaptureError, match=message):
        raise CaptureError(captured.summary)
    assert captured.summary.startswith("call by call (native-replay: ")
    assert capture(NativeModel()).steps is not None, "a failed recording spoils the next one"


READERS: dict[str, Callable[[list[int]], object]] = {
    "index": lambda lens: lens[0],
    "slice": lambda lens: lens[1:],
    "len": len,
    "truth": bool,
    "in": lambda lens: 1 in lens,
    "sum": sum,
    "sorted": sorted,
    "reversed": lambda lens: list(reversed(lens)),
    "spread": lambda lens: [*lens],
    "added": lambda lens: [1] + lens,
    "added to": lambda lens: lens + [1],
    "repeated": lambda lens: 2 * lens,
    "equal": lambda lens: lens == [13],
    "less": lambda lens: lens < [14],
    "unequal": lambda lens: lens != [13],
    "copy": lambda lens: lens.copy(),
    "count": lambda lens: lens.count(1),
    "place": lambda lens: lens.index(13),
    "tensor": torch.tensor,
    "array": np.array,
}


@pytest.mark.parametrize("name", READERS)
def test_no_way_to_read_lengths(name: str) -> None:
    def read(x: Tensor, batch: ForwardBatch) -> Tensor:
        READERS[name](batch.context_lens)
        return x

    assert capture(NativeModel(lambda x, batch: x)).steps is not None
    summary = capture(NativeModel(read)).summary
    assert "reading a batch's query_lens, context_lens or num_requests cannot be recorded" in summary
