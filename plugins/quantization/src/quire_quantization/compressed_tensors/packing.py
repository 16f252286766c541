"""The bit stream of pack-quantized integers: 1 to 8 bits each in int32 words, lowest bits first, without gaps."""

from __future__ import annotations

import torch
from torch import Tensor

WORD_BITS = 32


def num_words(count: int, bits: int) -> int:
    """The words that hold `count` integers of that many bits."""
    return -(-count * bits // WORD_BITS)


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """The integers of each row.

    Args:
        words: int32 [R, W], contiguous, W at least num_words(count, bits).
        bits: of an integer.
        count: integers of a row.

    Returns:
        uint8 [R, count].
    """
    if 8 % bits == 0:
        octets = words.view(torch.uint8)[:, : -(-count * bits // 8)]
        if bits == 8:
            return octets
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=words.device)
        fields = (octets[..., None] >> shifts).bitwise_and_((1 << bits) - 1)
        return fields.flatten(1)[:, :count]
    starts = torch.arange(count, device=words.device) * bits
    first = starts // WORD_BITS
    second = (first + 1).clamp_(max=words.shape[1] - 1)
    low = words.index_select(1, first).to(torch.int64) & 0xFFFFFFFF
    high = words.index_select(1, second).to(torch.int64) << WORD_BITS
    return ((low | high) >> (starts % WORD_BITS)).bitwise_and_((1 << bits) - 1).to(torch.uint8)
