"""The native attention backend: decode rows by one C kernel, longer rows of bfloat16 by another, else by torch."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.errors import ShapeError
from quire.api.protocols import AttentionParams
from quire.ops.attention_groups import RowGroup, group_rows
from quire.ops.paged_attention import TorchPagedAttention
from quire_kernels.native.bfloat16 import DOT_PRODUCTS, MATRIX_TILES, instructions
from quire_kernels.native.kernel import Kernel, SharedArguments
from quire_kernels.native.tensors import C_FLOAT, C_INT32, C_LONG, C_POINTER, dtype_code

MIN_PIECE = 256
"""Tokens of the smallest piece that a context is cut into; shorter ones cost more than they balance."""
PIECES_PER_THREAD = 8
"""About so many tasks for each thread, so that they end at about the same time."""
MAX_HEAD_SIZE = 512
MIN_QUERIES, MAX_QUERIES = 32, 256
"""Tokens of a task of longer rows: more would leave the caches, fewer copy keys and values too often."""
TASKS_PER_THREAD = 4

Int32Array = NDArray[np.int32]


class _PagedStep(ctypes.Structure):
    """`PagedStep` of paged.h."""

    _fields_ = [
        *(
            (name, C_POINTER)
            for name in ("block_tables", "seq_lens", "tasks", "merges", "pieces", "partials")
        ),
        *((name, C_LONG) for name in ("table_stride", "block_size", "num_tasks", "num_merges", "num_pieces")),
        ("most_tokens", C_LONG),
    ]


class _PagedAttention(ctypes.Structure):
    """`PagedAttention` of paged.h."""

    _fields_ = [
        *((name, C_POINTER) for name in ("step", "query", "cache", "slopes", "output")),
        *((name, C_LONG) for name in ("row_stride", "num_heads", "num_kv_heads", "head_size", "window")),
        *((name, C_FLOAT) for name in ("scale", "logit_cap")),
        *((name, C_INT32) for name in ("dtype", "with_amx", "threads")),
    ]


class _WriteKv(ctypes.Structure):
    """`WriteKv` of native.c."""

    _fields_ = [
        *((name, C_POINTER) for name in ("key", "value", "cache", "slots")),
        *((name, C_LONG) for name in ("rows", "key_stride", "value_stride", "width")),
        *((name, C_INT32) for name in ("dtype", "threads")),
    ]


_paged_attention = Kernel("paged_attention", _PagedAttention)
_write_kv = Kernel("write_kv", _WriteKv)


@dataclass(slots=True)
class NativeStep(SharedArguments):
    """What `prepare` makes of a batch.

    Attributes:
        arguments: of the C kernels, as far as the layers share them.
        arrays: that they point to.
        num_partials: partial results of decode rows that one layer leaves.
        partials: room for them.
        groups: the longer rows for torch, made by the first layer that needs them.
    """

    arguments: _PagedStep
    arrays: tuple[Int32Array, ...]
    num_partials: int
    partials: Tensor | None = None
    groups: list[RowGroup] | None = None


class NativePagedAttention(TorchPagedAttention):
    """Reads the KV blocks of decode rows where they lie, instead of gathering them; see native.c.

    The cache's layout is TorchPagedAttention's. A long context is cut into pieces that threads share, so one
    request uses them all. Rows of several tokens in bfloat16 are attended in tiles, by AMX or VDPBF16PS, see
    prefill.c; in float32, or where the CPU has neither, in torch's way.

    Args:
        limit: the instructions to use at most: 0, DOT_PRODUCTS or MATRIX_TILES.
    """

    name = "native-paged"

    def __init__(self, limit: int = MATRIX_TILES) -> None:
        super().__init__()
        self._partials = torch.empty(0)
        self._widest = 0
        self._slopes: dict[tuple[float, ...], Tensor] = {}
        self._instructions = min(instructions(), limit)

    def kv_cache_shape(self, num_blocks: int, block_size: int, params: AttentionParams) -> tuple[int, ...]:
        """See TorchPagedAttention."""
        self._widest = max(self._widest, _partial_size(params))
        return super().kv_cache_shape(num_blocks, block_size, params)

    def prepare(self, batch: ForwardBatch) -> NativeStep:  # type: ignore[override]  # each backend reads its own
        """Cut the contexts of decode rows, and the queries of the others, into tasks."""
        threads, num_decode = torch.get_num_threads(), batch.num_decode_rows
        tasks, merges, num_partials = cut_contexts(batch.context_lens[:num_decode], threads)
        pieces = cut_queries(batch.query_lens, batch.context_lens, num_decode, threads)
        arguments = _PagedStep(
            block_tables=batch.block_tables.data_ptr(),
            seq_lens=batch.seq_lens.data_ptr(),
            tasks=tasks.ctypes.data,
            merges=merges.ctypes.data,
            table_stride=batch.block_tables.stride(0),
            block_size=batch.block_size,
            num_tasks=len(tasks),
            num_merges=len(merges),
        )
        if len(pieces) and self._instructions >= DOT_PRODUCTS:
            arguments.pieces = pieces.ctypes.data
            arguments.num_pieces = len(pieces)
            arguments.most_tokens = int(pieces[:, 2].max())
        step = NativeStep(arguments, (tasks, merges, pieces), num_partials)
        self._reserve(step, self._widest)
        return step

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        params: AttentionParams,
        batch: ForwardBatch,
    ) -> Tensor:
        """See AttentionBackend.

        Raises:
            ShapeError: `batch.attention` was not prepared by this backend, or the heads are too large.
        """
        step = batch.attention
        if not isinstance(step, NativeStep):
            raise ShapeError(f"batch.attention is {type(step).__name__}: set it to prepare(batch) first")
        if params.head_size > MAX_HEAD_SIZE:
            raise ShapeError(
                f"head_size={params.head_size} is more than {MAX_HEAD_SIZE}: use the attention backend torch-paged"
            )
        num_tokens, num_heads, head_size = query.shape
        code, width = dtype_code(query.dtype), params.num_kv_heads * head_size
        threads = torch.get_num_threads()
        _write_kv(
            _WriteKv(
                key.data_ptr(),
                value.data_ptr(),
                kv_cache.data_ptr(),
                batch.slot_mapping.data_ptr(),
                num_tokens,
                key.stride(0),
                value.stride(0),
                width,
                code,
                threads,
            )
        )
        output = torch.empty((num_tokens, num_heads, head_size), dtype=query.dtype)
        self._reserve(step, _partial_size(params))
        _paged_attention(
            _PagedAttention(
                ctypes.addressof(step.arguments),
                query.data_ptr(),
                kv_cache.data_ptr(),
                self._slopes_of(params),
                output.data_ptr(),
                query.stride(0),
                num_heads,
                params.num_kv_heads,
                head_size,
                params.window or 0,
                params.scale,
                params.logit_cap or 0.0,
                code,
                self._instructions == MATRIX_TILES,
                threads,
            )
        )
        is_native = query.dtype == torch.bfloat16 and self._instructions >= DOT_PRODUCTS
        if num_tokens > batch.num_decode_rows and not is_native:
            if step.groups is None:
                step.groups = group_rows(batch, with_decodes=False).groups
            cache = kv_cache.view(-1, 2 * width)
            for group in step.groups:
                self.attend_group(group, (query, key, value), cache, params, output)
        return output.view(num_tokens, num_heads * head_size)

    def _reserve(self, step: NativeStep, size: int) -> None:
        """Room for a step's partial results, each of `size` floats."""
        if self._partials.numel() < step.num_partials * size:
            self._partials = torch.empty(step.num_partials * size)
        step.partials = self._partials
        step.arguments.partials = self._partials.data_ptr()

    def _slopes_of(self, params: AttentionParams) -> int | None:
        if params.alibi_slopes is None:
            return None
        if params.alibi_slopes not in self._slopes:
            self._slopes[params.alibi_slopes] = torch.tensor(params.alibi_slopes, dtype=torch.float32)
        return self._slopes[params.alibi_slopes].data_ptr()


def _partial_size(params: AttentionParams) -> int:
    return params.num_heads * (params.head_size + 2)


def cut_contexts(context_lens: list[int], threads: int) -> tuple[Int32Array, Int32Array, int]:
    """Cut contexts into pieces of at most about an equal share of the work.

    Args:
        context_lens: of the decode rows.
        threads: that will share them.

    Returns:
        tasks int32 [N, 4] (row, first token, last token exclusive, index of the partial result or -1
        where the row is whole), in an order that deals equal shares in turn; merges int32 [M, 3] (row,
        first partial, how many); the number of partial results.
    """
    lengths = np.array(context_lens, dtype=np.int64)
    piece = int(lengths.sum()) // (threads * PIECES_PER_THREAD) + 1
    piece = max(MIN_PIECE, -(-piece // 64) * 64) if threads > 1 else max(1, int(lengths.max(initial=1)))
    counts = -(-lengths // piece)
    rows = np.repeat(np.arange(len(lengths)), counts)
    starts = np.cumsum(counts) - counts
    index = np.arange(len(rows)) - starts[rows]
    is_cut = counts > 1
    first_partial = np.cumsum(np.where(is_cut, counts, 0)) - np.where(is_cut, counts, 0)
    size = -(-lengths // np.maximum(counts, 1))  # pieces of a row are equally long
    first = index * size[rows]
    last = np.minimum(first + size[rows], lengths[rows])
    partial = np.where(is_cut[rows], first_partial[rows] + index, -1)
    tasks = np.stack([rows, first, last, partial], axis=1).astype(np.int32)
    order = np.argsort(first - last, kind="stable")
    for start in range(threads, len(order), 2 * threads):  # dealt in turn: every other round backwards
        order[start : start + threads] = order[start : start + threads][::-1]
    tasks = np.ascontiguousarray(tasks[order])
    cut = np.nonzero(is_cut)[0]
    merges = np.stack([cut, first_partial[cut], counts[cut]], axis=1).astype(np.int32)
    return tasks, np.ascontiguousarray(merges), int(counts[cut].sum())


def cut_queries(
    query_lens: Sequence[int], context_lens: Sequence[int], num_decode: int, threads: int
) -> Int32Array:
    """Cut the queries of rows of several tokens into tasks.

    Args:
        query_lens: of all rows.
        context_lens: the same.
        num_decode: rows of one token, which come first and are left out.
        threads: that will share the tasks.

    Returns:
        int32 [N, 4]: row, first token of the step, tokens, position of the first one; the longest work first.
    """
    total = sum(query_lens[num_decode:])
    size = -(-total // (threads * TASKS_PER_THREAD) // MIN_QUERIES) * MIN_QUERIES
    size = min(max(size, MIN_QUERIES), MAX_QUERIES)
    tasks: list[tuple[int, int, int, int]] = []
    token = num_decode
    for row in range(num_decode, len(query_lens)):
        length, position = query_lens[row], context_lens[row] - query_lens[row]
        count = -(-length // size)
        for index in range(count):  # pieces of a row are about equally long
            first, last = length * index // count, length * (index + 1) // count
            tasks.append((row, token + first, last - first, position + first))
        token += length
    tasks.sort(key=lambda task: -task[2] * (task[3] + task[2]))
    return np.array(tasks, dtype=np.int32).reshape(-1, 4)
