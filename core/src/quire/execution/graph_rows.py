"""The rows of captured graphs: how many, and the batch buffers at that many, filled up with padding."""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

import torch
from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.errors import CaptureError

MOST_ROWS = 512
"""Beyond that a step takes the device longer than launching its kernels takes the host."""
_SIZES = (1, 2, 4, *range(8, 257, 8), *range(272, MOST_ROWS + 1, 16))


def ladder(most: int) -> list[int]:
    """The numbers of rows that graphs are captured for, ascending; the last one is `most`, or MOST_ROWS.

    Up to 8 by doubling, up to 256 by 8, then by 16.
    """
    most = min(most, MOST_ROWS)
    return [*(size for size in _SIZES if size < most), most]


class UnreadLengths(list[int]):
    """A batch's context_lens: how many is known, and which is not, as they differ from replay to replay."""

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        self._num_rows = num_rows

    def __len__(self) -> int:
        """The number of rows, which a graph keeps."""
        return self._num_rows

    def _refuse(self, *_: object) -> NoReturn:
        raise CaptureError("reading a batch's context_lens on the host cannot be replayed")

    __getitem__ = __iter__ = __reversed__ = __eq__ = __contains__ = _refuse


class GraphBuffers:
    """The persistent buffers of all batches, as graphs read them: at any number of rows of one token.

    Behind the rows of a batch lies padding, which `BatchBuilder` has put there. A row of it writes no KV (its slot
    is -1) and has no context (its length is 0), so it reads none. Its token, position and blocks are those that an
    earlier step left, or 0: valid ids all.

    Args:
        batch: any that lies in the buffers.
        most: rows.
    """

    def __init__(self, batch: ForwardBatch, most: int) -> None:
        row_stride = batch.block_tables.stride(0)
        flat, table = ((most,), (1,)), ((most, row_stride), (row_stride, 1))
        self._whole = replace(
            batch,
            token_ids=batch.token_ids.as_strided(*flat),
            positions=batch.positions.as_strided(*flat),
            rope_lens=batch.rope_lens.as_strided(*flat),
            query_start=torch.arange(most + 1, dtype=torch.int32, device=batch.seq_lens.device),
            seq_lens=batch.seq_lens.as_strided(*flat),
            slot_mapping=batch.slot_mapping.as_strided(*flat),
            block_tables=batch.block_tables.as_strided(*table),
        )
        self._row_stride = row_stride
        self._addresses = _addresses(self._whole)

    @property
    def block_size(self) -> int:
        """Slots per block."""
        return self._whole.block_size

    def step(self, num_rows: int) -> ForwardBatch:
        """A step of so many decodes, of whatever lies in the buffers when its kernels run; not prepared.

        Its block tables are as wide as they can be, whatever the contexts.
        """
        whole = self._whole
        return replace(
            whole,
            token_ids=whole.token_ids[:num_rows],
            positions=whole.positions[:num_rows],
            rope_lens=whole.rope_lens[:num_rows],
            query_start=whole.query_start[: num_rows + 1],
            seq_lens=whole.seq_lens[:num_rows],
            slot_mapping=whole.slot_mapping[:num_rows],
            block_tables=whole.block_tables[:num_rows],
            logits_rows=whole.logits_rows[:0],
            query_lens=[1] * num_rows,
            context_lens=UnreadLengths(num_rows),
            num_decode_rows=num_rows,
            attention=None,
            scratch={},
        )

    def check(self, batch: ForwardBatch) -> None:
        """CaptureError where a batch does not lie in these buffers."""
        if _addresses(batch) != self._addresses or batch.block_tables.stride(0) != self._row_stride:
            raise CaptureError("the batch does not lie in the buffers that the graphs were captured with")


def _addresses(batch: ForwardBatch) -> tuple[int, ...]:
    tensors: tuple[Tensor, ...] = (
        batch.token_ids,
        batch.positions,
        batch.rope_lens,
        batch.seq_lens,
        batch.slot_mapping,
        batch.block_tables,
    )
    return tuple(tensor.data_ptr() for tensor in tensors)
