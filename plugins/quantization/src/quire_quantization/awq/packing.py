"""The integers of AWQ's layouts: where each 4-bit field belongs."""

from __future__ import annotations

import torch
from torch import Tensor

PER_WORD = 8
"""4-bit fields of an int32."""

FAST_ROWS = 4
"""Output features that gemv_fast interleaves."""

FAST_INPUTS = 64
"""Inputs of a row that gemv_fast keeps together."""

_GEMM_FIELD = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which field of its word holds each of eight neighbouring outputs."""


def unpack_fields(words: Tensor) -> Tensor:
    """The 4-bit fields of integers, lowest bits first: uint8 [..., W * fields] of int16 or int32 [..., W]."""
    octets = words.contiguous().view(torch.uint8)
    return torch.stack([octets & 15, octets >> 4], dim=-1).flatten(-2)


def unpack_gemm(words: Tensor) -> Tensor:
    """What gemm packs along the outputs: uint8 [R, N] of int32 [R, N / 8].

    Source: order_map of WQLinear_GEMM, AutoAWQ 0.2.9.
    """
    rows, count = words.shape
    fields = unpack_fields(words).view(rows, count, PER_WORD)
    return fields[..., list(_GEMM_FIELD)].view(rows, count * PER_WORD)


def unpack_gemv_fast(words: Tensor) -> Tensor:
    """What gemv_fast packs: uint8 [N, K] of int16 [N / 4, K], K a multiple of 64.

    Rows lie four together, 64 inputs of each in turn. Of every 32 inputs, the place 8b + 4c + a holds
    input 8a + 2b + c.

    Source: pack_intweight of gemv_fast.py, AutoAWQ 0.2.9.
    """
    blocks, inputs = words.shape
    fields = unpack_fields(words).view(blocks, inputs // FAST_INPUTS, FAST_ROWS, FAST_INPUTS)
    places = fields.transpose(1, 2).reshape(blocks * FAST_ROWS, inputs // 32, 4, 2, 4)
    return places.permute(0, 1, 4, 2, 3).reshape(blocks * FAST_ROWS, inputs)
