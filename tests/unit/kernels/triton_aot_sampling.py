"""The sampling calls that `triton_aot.py` compiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from quire_kernels.sampling.triton import apply_penalties, greedy_tokens, sample_tokens

MOST_KERNELS = 2
"""Of a call: one that gathers candidates, one that draws."""
SIZE = 151936


def calls() -> Iterator[Callable[[int], object]]:
    """Functions of a number of rows."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for size in (SIZE, 50257):
            yield partial(_greedy, size=size, dtype=dtype)
            yield partial(_sample, size=size, dtype=dtype)
    yield _penalties


def _tensor(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _greedy(rows: int, size: int, dtype: torch.dtype) -> None:
    greedy_tokens(_tensor(rows, size, dtype=dtype))


def _sample(rows: int, size: int, dtype: torch.dtype) -> None:
    temperature, min_p, top_p, draws = (_tensor(rows, dtype=torch.float64) for _ in range(4))
    top_k = _tensor(rows, dtype=torch.int64)
    sample_tokens(_tensor(rows, size, dtype=dtype), temperature, min_p, top_k, top_p, draws)


def _penalties(rows: int) -> None:
    ids, counts = (_tensor(100 * rows, dtype=torch.int64) for _ in range(2))
    numbers = [_tensor(rows, dtype=torch.float32) for _ in range(3)]
    logits, offsets = _tensor(rows, SIZE, dtype=torch.float32), _tensor(rows + 1, dtype=torch.int64)
    apply_penalties(logits, ids, counts, offsets, *numbers)
