"""The native implementation of sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from quire_kernels.native.tensors import C_INT32, C_LONG, C_POINTER, dtype_code, function

_BLOCK = 256
"""As in native.c."""

_greedy = function("quire_sample_greedy", (C_INT32, *[C_POINTER] * 2, *[C_LONG] * 3, C_INT32))
_sample = function("quire_sample_tokens", (C_INT32, *[C_POINTER] * 8, *[C_LONG] * 4, C_INT32))
_penalise = function("quire_sample_penalties", (*[C_POINTER] * 7, *[C_LONG] * 2, C_INT32))


def apply_penalties(
    logits: Tensor,
    token_ids: Tensor,
    counts: Tensor,
    row_offsets: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> Tensor:
    """See `quire.ops.sampling.apply_penalties`; float32 on a CPU.

    Raises:
        TypeError: another dtype.
    """
    if logits.dtype != torch.float32:
        raise TypeError(f"native penalties take float32, not {logits.dtype}")
    arguments = [x.contiguous() for x in (token_ids, counts, row_offsets, repetition, frequency, presence)]
    _penalise(
        logits.data_ptr(),
        *(x.data_ptr() for x in arguments),
        logits.shape[0],
        logits.stride(0),
        torch.get_num_threads(),
    )
    return logits


def greedy_tokens(logits: Tensor) -> Tensor:
    """See `quire.ops.sampling.greedy_tokens`; bfloat16 and float32 on a CPU, read once where they lie."""
    rows = _rows(logits)
    token_ids = torch.empty(len(rows), dtype=torch.int64)
    _greedy(
        dtype_code(rows.dtype),
        rows.data_ptr(),
        token_ids.data_ptr(),
        *rows.shape,
        rows.stride(0),
        torch.get_num_threads(),
    )
    return token_ids


def sample_tokens(
    logits: Tensor, temperature: Tensor, min_p: Tensor, top_k: Tensor, top_p: Tensor, draws: Tensor
) -> Tensor:
    """See `quire.ops.sampling.sample_tokens`; bfloat16 and float32 on a CPU."""
    rows = _rows(logits)
    token_ids = torch.empty(len(rows), dtype=torch.int64)
    arguments = [x.contiguous() for x in (temperature, min_p, top_k, top_p, draws)]
    threads = max(1, min(torch.get_num_threads(), len(rows)))
    num_blocks = -(-rows.shape[1] // _BLOCK)
    scratch = torch.empty(threads, num_blocks * (1 + 3 * _BLOCK), dtype=torch.float32)
    _sample(
        dtype_code(rows.dtype),
        rows.data_ptr(),
        *(x.data_ptr() for x in arguments),
        token_ids.data_ptr(),
        scratch.data_ptr(),
        *rows.shape,
        rows.stride(0),
        scratch.stride(0),
        threads,
    )
    return token_ids


def _rows(logits: Tensor) -> Tensor:
    return logits if logits.stride(1) == 1 else logits.contiguous()
