"""Tells from the data which of two ways zero points are stored, where a checkpoint's label is wrong."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quire_quantization.gptq.packing import add_to_words, unpack, unpack_zeros

_SAMPLE_WEIGHTS = 1 << 18
_NEAR, _FAR = 0.25, 0.75
_MAX_OFFSET_ERROR, _MAX_CARRY_ERROR = 0.05, 0.125
"""Standard errors of means; few zero points have a neighbour of 0, and little is lost by an error there."""

_MAX_BITS = 4


def uniform_zero(qzeros: Tensor, bits: int) -> int | None:
    """The stored zero point if all are equal, else None."""
    stored = unpack_zeros(qzeros, bits, 0)
    low, high = int(stored.min()), int(stored.max())
    return low if low == high else None


def symmetric_offset(stored: int | None, bits: int) -> int | None:
    """What is to be added to zero points that are all `stored`; None: they are not those of symmetric weights."""
    offset = None if stored is None else (1 << (bits - 1)) - stored
    return offset if offset in (0, 1) else None


def asymmetric_offset(qweight: Tensor, qzeros: Tensor, groups: Tensor, bits: int, label: int) -> int:
    """What is to be added to stored zero points: as labelled, unless the weights clearly say otherwise.

    Weights lie about zero, so q - zero has a mean near 0 with the right offset and near 1 or -1 with the
    wrong one. That is told from the means of groups; where these spread too much for their number
    (few groups), the label counts. It counts in 8 bits too, where a step is so small that the mean of
    the weights of an honest layer may be one.

    Args:
        qweight: as stored.
        qzeros: as stored.
        groups: int64 [K], the group of each input.
        bits: of a weight.
        label: 1 or 0, what the checkpoint says.
    """
    other = 1 - label
    if bits > _MAX_BITS:
        return label
    outputs = _sample(torch.arange(qweight.shape[1], device=qweight.device), groups)
    means = _group_means(qweight[:, outputs], groups, qzeros.shape[0], bits)
    labelled, others = (means - unpack_zeros(qzeros, bits, offset)[:, outputs] for offset in (label, other))
    return other if _is_clear(labelled, others, _MAX_OFFSET_ERROR) else label


def has_carries(qweight: Tensor, qzeros: Tensor, groups: Tensor, bits: int) -> bool:
    """Whether 1 was subtracted from whole words of zero points, where 0 borrows from its neighbour.

    Otherwise it was subtracted from each by itself. The two differ by 1 beside zero points of 0, and
    the same means tell which of them it was; where they do not, it was the latter.

    Args:
        qweight: as stored.
        qzeros: as stored, in format v1.
        groups: int64 [K], the group of each input.
        bits: of a weight: 2, 4 or 8.
    """
    by_field, by_word = unpack_zeros(qzeros, bits, 1), unpack_zeros(add_to_words(qzeros, bits), bits, 0)
    differing = by_word > by_field
    outputs = _sample(differing.any(0).nonzero().flatten(), groups)
    if bits > _MAX_BITS or not len(outputs):
        return False
    means = _group_means(qweight[:, outputs], groups, qzeros.shape[0], bits)
    fields, words = ((means - zeros[:, outputs])[differing[:, outputs]] for zeros in (by_field, by_word))
    return _is_clear(fields, words, _MAX_CARRY_ERROR)


def _is_clear(first: Tensor, second: Tensor, max_error: float) -> bool:
    """Whether weights lie about zero by the second of two readings of zero points, and not by the first.

    Both are group means of q - zero; NaN for groups without inputs.
    """
    first, second = first[~first.isnan()], second[~second.isnan()]
    standard_error = float(second.std()) / max(1, second.numel()) ** 0.5 if second.numel() > 1 else math.inf
    is_certain = standard_error < max_error
    return is_certain and abs(float(second.mean())) < _NEAR and abs(float(first.mean())) > _FAR


def _sample(outputs: Tensor, groups: Tensor) -> Tensor:
    """Some of the outputs, evenly spaced, with not many more weights than _SAMPLE_WEIGHTS."""
    return outputs[:: max(1, len(outputs) * len(groups) // _SAMPLE_WEIGHTS)]


def _group_means(qweight: Tensor, groups: Tensor, num_groups: int, bits: int) -> Tensor:
    """The mean of q of each group of each output, float64 [G, n]."""
    integers = unpack(qweight.contiguous(), bits).to(torch.float64)
    sums = integers.new_zeros(num_groups, integers.shape[1]).index_add_(0, groups, integers)
    return sums / torch.bincount(groups, minlength=num_groups)[:, None]
