"""Sampling in Triton, for CUDA and ROCm."""

from __future__ import annotations

import torch
from torch import Tensor

from quire_kernels.sampling.triton_kernel import draw_tokens, gather_candidates, greedy_rows, penalise_rows
from quire_kernels.triton.launch import check_dtype, on_device_of

_BLOCK, _DRAW_BLOCK, _PENALTY_BLOCK = 4096, 1024, 512
_CAPACITY = 8192
"""Candidates of a row that are listed; of more, the row itself is read again and again."""


def apply_penalties(
    logits: Tensor,
    token_ids: Tensor,
    counts: Tensor,
    row_offsets: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> Tensor:
    """See `quire.ops.sampling.apply_penalties`; float32.

    Raises:
        TypeError: another dtype.
    """
    if logits.dtype != torch.float32:
        raise TypeError(f"penalties in Triton take float32, not {logits.dtype}")
    if logits.numel() == 0:
        return logits
    arguments = [x.contiguous() for x in (token_ids, counts, row_offsets, repetition, frequency, presence)]
    with on_device_of(logits):
        penalise_rows[(len(logits),)](logits, logits.stride(0), *arguments, BLOCK=_PENALTY_BLOCK)
    return logits


def greedy_tokens(logits: Tensor) -> Tensor:
    """See `quire.ops.sampling.greedy_tokens`; bfloat16, float16 and float32, read once."""
    rows = _rows(logits)
    token_ids = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    if len(rows):
        with on_device_of(rows):
            greedy_rows[(len(rows),)](
                rows, token_ids, rows.shape[1], rows.stride(0), BLOCK=_BLOCK, num_warps=8
            )
    return token_ids


def sample_tokens(
    logits: Tensor, temperature: Tensor, min_p: Tensor, top_k: Tensor, top_p: Tensor, draws: Tensor
) -> Tensor:
    """See `quire.ops.sampling.sample_tokens`; bfloat16, float16 and float32."""
    rows = _rows(logits)
    num_rows, size = rows.shape
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=rows.device)
    if num_rows == 0:
        return token_ids
    bests, values = (
        torch.empty(shape, dtype=torch.float32, device=rows.device)
        for shape in (num_rows, (num_rows, _CAPACITY))
    )
    totals = torch.empty(num_rows, dtype=torch.float64, device=rows.device)
    num_candidates, places = (
        torch.empty(shape, dtype=torch.int32, device=rows.device)
        for shape in (num_rows, (num_rows, _CAPACITY))
    )
    params = [x.contiguous() for x in (temperature, min_p, top_k, top_p)]
    made = (token_ids, bests, totals, num_candidates, values, places, size, rows.stride(0))
    with on_device_of(rows):
        gather_candidates[(num_rows,)](rows, *params, *made, CAPACITY=_CAPACITY, BLOCK=_BLOCK, num_warps=8)
        draw_tokens[(num_rows,)](
            rows, *params, draws.contiguous(), *made, CAPACITY=_CAPACITY, BLOCK=_DRAW_BLOCK, num_warps=8
        )
    return token_ids


def _rows(logits: Tensor) -> Tensor:
    check_dtype(logits)
    return logits if logits.stride(1) == 1 else logits.contiguous()
