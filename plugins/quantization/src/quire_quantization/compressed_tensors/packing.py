"""Pack-quantized integers of 1 to 8 bits in int32 words, lowest bits first: without gaps, and in the old packing."""

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


def num_gapped_words(count: int, bits: int) -> int:
    """The words that hold `count` integers of that many bits where none goes on in the next word."""
    return -(-count // (WORD_BITS // bits))


def unpack_gapped(words: Tensor, bits: int, count: int) -> Tensor:
    """The integers of each row, 32 // bits of them in a word and the rest of it empty.

    Args:
        words: int32 [R, W], W at least num_gapped_words(count, bits).
        bits: of an integer.
        count: integers of a row.

    Returns:
        uint8 [R, count].

    Source: pack_to_int32 of compressed-tensors up to 0.12.
    """
    shifts = torch.arange(WORD_BITS // bits, dtype=torch.int32, device=words.device) * bits
    fields = (words[..., None] >> shifts).bitwise_and_((1 << bits) - 1)
    return fields.flatten(1)[:, :count].to(torch.uint8)


def pack(values: Tensor, bits: int) -> Tensor:
    """The inverse of `unpack`: int32 [R, num_words(count, bits)] of uint8 [R, count]."""
    size, device = num_words(values.shape[1], bits), values.device
    words = torch.zeros(len(values), size + 1, dtype=torch.int64, device=device)
    starts = torch.arange(values.shape[1], device=device) * bits
    shifted = values.to(torch.int64) << (starts % WORD_BITS)
    words.index_add_(1, starts // WORD_BITS, shifted & 0xFFFFFFFF)
    words.index_add_(1, starts // WORD_BITS + 1, shifted >> WORD_BITS)
    return words[:, :size].contiguous().view(torch.int32)[:, ::2].contiguous()
