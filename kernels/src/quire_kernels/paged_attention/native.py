"""The native attention backend: decode rows by one C kernel, longer rows by others."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.errors import ShapeError
from quire.api.protocols import AttentionParams
from quire.ops.paged_attention import TorchPagedAttention
from quire_kernels.kv_write.native import kept_code, write_tokens
from quire_kernels.native.bfloat16 import DOT_PRODUCTS, MATRIX_TILES, instructions
from quire_kernels.native.kernel import Kernel, SharedArguments
from quire_kernels.native.tensors import C_FLOAT, C_INT32, C_LONG, C_POINTER, dtype_code
from quire_kernels.paged_attention.tasks import Int32Array, cut_contexts, cut_queries, find_shared
from quire_kernels.rotary.native import rotary

MAX_HEAD_SIZE = 512


class _PagedStep(ctypes.Structure):
    """`PagedStep` of paged.h."""

    _fields_ = [
        *((name, C_POINTER) for name in ("block_tables", "seq_lens", "tasks", "merges", "pieces")),
        *((name, C_POINTER) for name in ("shared", "users", "partials")),
        *((name, C_LONG) for name in ("table_stride", "block_size", "num_tasks", "num_merges")),
        *((name, C_LONG) for name in ("num_pieces", "num_shared", "most_tokens")),
    ]


class _PagedAttention(ctypes.Structure):
    """`PagedAttention` of paged.h."""

    _fields_ = [
        *((name, C_POINTER) for name in ("step", "query", "cache", "slopes", "output")),
        *((name, C_LONG) for name in ("row_stride", "num_heads", "num_kv_heads", "head_size", "window")),
        *((name, C_FLOAT) for name in ("scale", "logit_cap")),
        *((name, C_INT32) for name in ("dtype", "kept", "with_amx", "threads")),
    ]


_paged_attention = Kernel("paged_attention", _PagedAttention)


@dataclass(slots=True)
class NativeStep(SharedArguments):
    """What `prepare` makes of a batch.

    Attributes:
        arguments: of the C kernels, as far as the layers share them.
        arrays: that they point to.
        num_partials: partial results of decode rows that one layer leaves.
        partials: room for them.
    """

    arguments: _PagedStep
    arrays: tuple[Int32Array, ...]
    num_partials: int
    partials: Tensor | None = None


class NativePagedAttention(TorchPagedAttention):
    """Reads the KV blocks of decode rows where they lie, instead of gathering them; see native.c.

    The cache's layout is TorchPagedAttention's. A long context is cut into pieces that threads share, so one
    request uses them all. Rows of several tokens in bfloat16 are attended in tiles, by AMX or VDPBF16PS, see
    prefill.c; in float32, or where the CPU has neither, by products of float32, see prefill_generic.c.

    Args:
        limit: the instructions to use at most, where the CPU has any for bfloat16: DOT_PRODUCTS or MATRIX_TILES.
    """

    name = "native-paged"

    def __init__(self, limit: int = MATRIX_TILES) -> None:
        super().__init__()
        self.rotary_op = rotary
        self._partials = torch.empty(0)
        self._widest = 0
        self._is_plain = True
        self._can_share = False
        self._slopes: dict[tuple[float, ...], Tensor] = {}
        self._instructions = min(instructions(), limit)

    def kv_cache_shape(self, num_blocks: int, block_size: int, params: AttentionParams) -> tuple[int, ...]:
        """See TorchPagedAttention."""
        self._widest = max(self._widest, _partial_size(params))
        is_biased = params.alibi_slopes is not None or params.logit_cap is not None
        self._is_plain &= params.window is None and not is_biased and params.scale > 0
        return super().kv_cache_shape(num_blocks, block_size, params)

    def prepare(self, batch: ForwardBatch) -> NativeStep:  # type: ignore[override]  # each backend reads its own
        """Cut the contexts of decode rows, and the queries of the others, into tasks."""
        threads, num_decode = torch.get_num_threads(), batch.num_decode_rows
        context_lens, shared = batch.context_lens[:num_decode], None
        if self._can_share:
            shared = find_shared(batch.block_tables.numpy()[:num_decode], context_lens, batch.block_size)
        tasks, merges, num_partials = cut_contexts(context_lens, threads, shared)
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
        arrays = [tasks, merges]
        if len(pieces):
            arguments.pieces = pieces.ctypes.data
            arguments.num_pieces = len(pieces)
            arguments.most_tokens = int(pieces[:, 2].max())
            arrays.append(pieces)
        if shared is not None:
            arguments.shared = shared.tasks.ctypes.data
            arguments.users = shared.users.ctypes.data
            arguments.num_shared = len(shared.tasks)
            arguments.most_tokens = max(arguments.most_tokens, int(shared.tasks[:, 1].max()))
            arrays += [shared.tasks, shared.users]
        step = NativeStep(arguments, tuple(arrays), num_partials)
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
        """See AttentionBackend; raises as `rotate_and_forward`."""
        return self._run((query, key, value), None, False, kv_cache, params, batch)

    def rotate_and_forward(
        self,
        inputs: tuple[Tensor, Tensor, Tensor],
        rows: tuple[Tensor, Tensor],
        interleaved: bool,
        kv_cache: Tensor,
        params: AttentionParams,
        batch: ForwardBatch,
    ) -> Tensor:
        """See RotatingAttentionBackend.

        Raises:
            ShapeError: `batch.attention` was not prepared by this backend, or the heads are too large.
        """
        return self._run(inputs, rows, interleaved, kv_cache, params, batch)

    def _run(
        self,
        inputs: tuple[Tensor, Tensor, Tensor],
        rows: tuple[Tensor, Tensor] | None,
        interleaved: bool,
        kv_cache: Tensor,
        params: AttentionParams,
        batch: ForwardBatch,
    ) -> Tensor:
        step, query = batch.attention, inputs[0]
        if not isinstance(step, NativeStep):
            raise ShapeError(f"batch.attention is {type(step).__name__}: set it to prepare(batch) first")
        if params.head_size > MAX_HEAD_SIZE:
            raise ShapeError(
                f"head_size={params.head_size} is more than {MAX_HEAD_SIZE}: use the attention backend torch-paged"
            )
        num_tokens, num_heads, head_size = query.shape
        threads = torch.get_num_threads()
        write_tokens(inputs, rows, interleaved, kv_cache, batch.slot_mapping, params)
        output = torch.empty((num_tokens, num_heads, head_size), dtype=query.dtype)
        self._widest = max(self._widest, _partial_size(params))
        self._reserve(step, self._widest)
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
                dtype_code(query.dtype),
                kept_code(params, query.dtype),
                self._instructions == MATRIX_TILES,
                threads,
            )
        )
        has_dots = query.dtype == torch.bfloat16 and self._instructions >= DOT_PRODUCTS
        self._can_share = self._is_plain and has_dots
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
