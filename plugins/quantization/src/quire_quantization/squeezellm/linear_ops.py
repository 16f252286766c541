"""The op `squeezellm_linear`: its reference, and a faster one for CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from quire_quantization.chunked import multiply_in_chunks, wide_dtype

TABLE_SIZE = 16
PER_WORD = 8
"""4-bit indices of an int32."""

_CHUNK_WEIGHTS = 1 << 17
"""How many weights are looked up at a time: 512 KB in float32, beside as much for their indices."""


def squeezellm_linear(x: Tensor, qweight: Tensor, lookup_table: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer whose weights are indices into a table: w[n, k] = lookup_table[n, index[n, k]].

    Args:
        x: [T, K], any floating dtype.
        qweight: int32 [N, K / 8], the indices of eight neighbouring inputs in a word, lowest bits first.
        lookup_table: [N, 16], float16, bfloat16 or float32.
        bias: [N] in x's dtype, or None.

    Returns:
        [T, N], x's dtype, a new tensor.

    Source: Kim et al. 2023 (SqueezeLLM).
    """
    wide = wide_dtype(x)

    def weights(rows: slice) -> Tensor:
        octets = qweight[rows].view(torch.uint8)
        indices = torch.stack([octets & 15, octets >> 4], dim=-1).flatten(1)
        return lookup_table[rows].to(wide).gather(1, indices.long())

    return multiply_in_chunks(x, weights, lookup_table.shape[0], bias, chunk_weights=_CHUNK_WEIGHTS)


def squeezellm_linear_by_pairs(
    x: Tensor, qweight: Tensor, lookup_table: Tensor, bias: Tensor | None
) -> Tensor:
    """The same in float32, two weights at a time: a byte of indices selects from the 256 pairs of a table's values.

    About a fifth of the time of one gather of the whole weight (2048 x 2048, one row, one thread).

    Args:
        x: [T, K], float32 or narrower.
        qweight: as in the reference.
        lookup_table: likewise.
        bias: likewise.
    """

    def weights(rows: slice) -> Tensor:
        pairs = _pairs(lookup_table[rows].to(torch.float32))
        return pairs.gather(1, qweight[rows].view(torch.uint8).long()).view(torch.float32)

    return multiply_in_chunks(x, weights, lookup_table.shape[0], bias, chunk_weights=_CHUNK_WEIGHTS)


def _pairs(table: Tensor) -> Tensor:
    """Two float32 in each int64, [n, 256]: of the byte's low and of its high index."""
    size = (table.shape[0], TABLE_SIZE, TABLE_SIZE)
    both = torch.stack([table[:, None, :].expand(size), table[:, :, None].expand(size)], dim=-1)
    return both.view(table.shape[0], 2 * TABLE_SIZE * TABLE_SIZE).view(torch.int64)
