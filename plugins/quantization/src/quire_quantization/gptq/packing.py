"""The bit streams of GPTQ checkpoints: integers of 2, 3, 4 or 8 bits in int32 words, lowest bits first."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from quire.api.errors import QuantizationError

WORD_BITS = 32

WORD_ONES = {bits: sum(1 << shift for shift in range(0, WORD_BITS, bits)) for bits in (2, 4, 8)}
"""By bits: a word of ones; 3 bits do not fill words evenly, and tools count them field by field."""


def values_per_word(bits: int) -> Fraction:
    """How many integers a word holds: 32/3 of 3 bits, which lie 32 together in three words."""
    return Fraction(WORD_BITS, bits)


def num_words(count: int, bits: int, what: str) -> int:
    """The words that hold `count` integers; `what` is what messages call these.

    Raises:
        QuantizationError: they do not end with a word.
    """
    together = values_per_word(bits).numerator
    if count % together:
        raise QuantizationError(
            f"{count} {what} of {bits} bits do not fill whole words: expected a multiple of {together}"
        )
    return count * bits // WORD_BITS


def unpack(words: Tensor, bits: int) -> Tensor:
    """The integers that lie along the first dimension: uint8 [W * 32 / bits, n] of int32 [W, n]."""
    period = bits // math.gcd(bits, WORD_BITS)
    count = period * WORD_BITS // bits
    mask = (1 << bits) - 1
    grouped = words.view(-1, period, words.shape[1])
    values = words.new_empty(grouped.shape[0], count, words.shape[1], dtype=torch.uint8)
    for index in range(count):
        word, shift = divmod(index * bits, WORD_BITS)
        held = WORD_BITS - shift
        value = grouped[:, word] >> shift
        if held < bits:
            value = (value & ((1 << held) - 1)) | (grouped[:, word + 1] << held)
        values[:, index] = value & mask
    return values.view(-1, words.shape[1])


def unpack_zeros(qzeros: Tensor, bits: int, zero_offset: int) -> Tensor:
    """Zero points, packed along the outputs: uint8 [G, N] of int32 [G, N * bits / 32].

    They are the stored values plus `zero_offset`, modulo 2**bits.
    """
    stored = unpack(qzeros.t().contiguous(), bits).t()
    return (stored + zero_offset) & ((1 << bits) - 1)


def add_to_words(qzeros: Tensor, bits: int) -> Tensor:
    """Packed zero points with 1 added to each, carries included: GPTQModel's way from format v1 to v2.

    Args:
        qzeros: int32, words modulo 2**32.
        bits: 2, 4 or 8.

    Source: convert_gptq_v1_to_v2_format_module of GPTQModel 7.6.
    """
    return qzeros + WORD_ONES[bits]
