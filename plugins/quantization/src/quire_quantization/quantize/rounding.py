"""Rounds weights to the nearest of evenly spaced levels around zero, and packs them."""

from __future__ import annotations

import torch
from torch import Tensor

_WORD_BITS = 32


def symmetric_scales(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """The scale of each group: its largest magnitude over half the range.

    No value is then off by more than half a step, apart from what rounding the scale itself does to the largest.

    Args:
        weight: [N, K], floating.
        bits: of the integers, which run from -2**(bits - 1) to 2**(bits - 1) - 1.
        group_size: consecutive inputs that share a scale; divides K.

    Returns:
        [N, K / group_size], the weight's dtype, positive, also where a group is zero.
    """
    largest = weight.reshape(len(weight), -1, group_size).abs().amax(dim=2).float()
    smallest = torch.finfo(weight.dtype).tiny
    scales: Tensor = (largest / ((2**bits - 1) / 2)).to(weight.dtype).clamp(min=smallest)
    return scales


def round_to_nearest(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The integers nearest to weight / scale.

    Args:
        weight: [N, K], floating.
        scales: [N, G], as stored, so that their own rounding is made up for.
        bits: see `symmetric_scales`.

    Returns:
        int8 [N, K].
    """
    grouped = weight.reshape(*scales.shape, -1).float()
    levels = torch.round(grouped / scales.float().unsqueeze(2))
    return levels.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(torch.int8).flatten(1)


def pack_words(levels: Tensor, bits: int) -> Tensor:
    """Integers as 32-bit words, the first in the lowest bits, each raised by 2**(bits - 1).

    Args:
        levels: int8 [N, K], K a multiple of 32 / bits.
        bits: a divisor of 32.

    Returns:
        int32 [N, K * bits / 32].

    Source: compressed-tensors, format pack-quantized.
    """
    per_word = _WORD_BITS // bits
    raised = (levels.to(torch.int32) + 2 ** (bits - 1)).reshape(len(levels), -1, per_word)
    shifts = torch.arange(per_word, dtype=torch.int32, device=levels.device) * bits
    words: Tensor = (raised << shifts).sum(dim=2, dtype=torch.int32)
    return words
