"""Tells from the data which of two ways zero points are stored, where a checkpoint's label is wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from quire_quantization.gptq.packing import unpack, unpack_zeros

_SAMPLE_WEIGHTS = 1 << 18
_NEAR, _FAR = 0.25, 0.75
_MAX_STANDARD_ERROR = 0.05
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
    labelled, others = (_group_means(qweight, qzeros, groups, bits, offset) for offset in (label, other))
    standard_error = float(others.std()) / max(1, others.numel()) ** 0.5
    is_clear = standard_error < _MAX_STANDARD_ERROR  # not so for nan, the deviation of one group
    if is_clear and abs(float(others.mean())) < _NEAR and abs(float(labelled.mean())) > _FAR:
        return other
    return label


def _group_means(qweight: Tensor, qzeros: Tensor, groups: Tensor, bits: int, offset: int) -> Tensor:
    """The mean of q - zero of each group of a sample of outputs, float64."""
    outputs = qweight.shape[1]
    stride = -(-outputs * groups.numel() // _SAMPLE_WEIGHTS)
    integers = unpack(qweight[:, ::stride].contiguous(), bits)
    zeros = unpack_zeros(qzeros, bits, offset)[:, ::stride].to(torch.float64)
    sums = torch.zeros_like(zeros).index_add_(0, groups, integers.to(torch.float64))
    counts = torch.bincount(groups, minlength=zeros.shape[0])
    used = counts > 0
    return (sums[used] / counts[used, None] - zeros[used]).flatten()
