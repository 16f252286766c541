"""The Triton attention backend, for CUDA and ROCm: decodes, chunks of prompts and both, by one kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.errors import ShapeError
from quire.api.protocols import AttentionParams
from quire.ops.paged_attention import TorchPagedAttention
from quire_kernels.kv_write.triton import CacheLayout, write_tokens
from quire_kernels.paged_attention.triton_kernels import attend, merge_partials
from quire_kernels.paged_attention.triton_plans import HeadShape, Plan, make_plan
from quire_kernels.paged_attention.triton_schedule import ITEM, MERGE, schedule_items
from quire_kernels.rotary.triton import rotary
from quire_kernels.triton.launch import device_traits, on_device_of

MAX_HEAD_SIZE = 256
_LOG2_E = 1.4426950408889634


@dataclass(slots=True, frozen=True)
class RowRange:
    """Rows of a step that are planned together, and how many tokens they have."""

    first_row: int
    num_rows: int
    num_tokens: int
    is_decode: bool


@dataclass(slots=True, frozen=True)
class Schedule:
    """What `schedule_items` made of a range: int32 items [N, 8] and merges [M, 4], see the kernels."""

    items: Tensor
    merges: Tensor


@dataclass(slots=True, frozen=True)
class TritonStep:
    """What the layers of a step share: its ranges, and the schedules that layers have asked for so far."""

    ranges: tuple[RowRange, ...]
    schedules: dict[tuple[Plan, int | None], Schedule] = field(default_factory=dict)

    def schedule(self, rows: RowRange, plan: Plan, window: int | None, batch: ForwardBatch) -> Schedule:
        """Of one range; made on the device by the first layer that needs it."""
        key = (plan, window)
        if key not in self.schedules:
            self.schedules[key] = make_schedule(rows, plan, window, batch)
        return self.schedules[key]


class TritonPagedAttention(TorchPagedAttention):
    """Reads KV blocks where they lie, by Q blocks that pack the query heads of a KV head; see the kernels.

    The cache's layout is TorchPagedAttention's. Rows of one token and longer ones are planned apart. Long
    contexts are cut so that the processors share the step's work evenly; how, is decided on the device, so
    that launches depend only on the numbers of rows and tokens and on the width of the block tables. How a
    context is cut depends on the step's other rows: equal in value, results may differ in the last bits.
    """

    name = "triton-paged"

    def __init__(self) -> None:
        super().__init__()
        self.rotary_op = rotary
        self._slopes: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}

    def prepare(self, batch: ForwardBatch) -> TritonStep:  # type: ignore[override]  # each backend reads its own
        """The step's ranges of rows."""
        return TritonStep(tuple(_ranges(batch)))

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
        """See RotatingAttentionBackend; query and key stay as they are.

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
        if not isinstance(step, TritonStep):
            raise ShapeError(f"batch.attention is {type(step).__name__}: set it to prepare(batch) first")
        if params.head_size > MAX_HEAD_SIZE:
            raise ShapeError(
                f"head_size={params.head_size} is more than {MAX_HEAD_SIZE}: use the attention backend torch-paged"
            )
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        with on_device_of(query):
            query = write_tokens(inputs, rows, interleaved, kv_cache, batch.slot_mapping, params)
            layer = Layer(query, kv_cache, params, self._slopes_of(params, query.device), out)
            for part in step.ranges:
                plan = layer.plan(part)
                attend_rows(layer, part, plan, step.schedule(part, plan, params.window, batch), batch)
        return out.view(query.shape[0], -1)

    def _slopes_of(self, params: AttentionParams, device: torch.device) -> Tensor | None:
        if params.alibi_slopes is None:
            return None
        key = (params.alibi_slopes, device)
        if key not in self._slopes:
            slopes = [_LOG2_E * slope for slope in params.alibi_slopes]
            self._slopes[key] = torch.tensor(slopes, dtype=torch.float32, device=device)
        return self._slopes[key]


@dataclass(slots=True, frozen=True)
class Layer:
    """One layer's arguments of a step; slopes in bits, see the kernels. out [T, H, D] is written."""

    query: Tensor
    kv_cache: Tensor
    params: AttentionParams
    slopes: Tensor | None
    out: Tensor

    @property
    def shape(self) -> HeadShape:
        """Of its heads."""
        params = self.params
        group, is_quantized = params.num_heads // params.num_kv_heads, params.kv_cache_dtype != "auto"
        return HeadShape(
            params.num_kv_heads, group, params.head_size, self.query.element_size(), is_quantized
        )

    def plan(self, rows: RowRange) -> Plan:
        """Of a range of rows."""
        return make_plan(self.shape, device_traits(self.query.device), is_decode=rows.is_decode)


def make_schedule(rows: RowRange, plan: Plan, window: int | None, batch: ForwardBatch) -> Schedule:
    """Cut the contexts of a range into items, on the device."""
    num_blocks = plan.most_blocks(rows.num_rows, rows.num_tokens)
    device = batch.seq_lens.device
    items = torch.zeros((num_blocks + plan.target_items, ITEM.value), dtype=torch.int32, device=device)
    merges = torch.zeros((plan.target_items, MERGE.value), dtype=torch.int32, device=device)
    schedule_items[(1,)](
        batch.query_start,
        batch.seq_lens,
        items,
        merges,
        rows.first_row,
        rows.num_rows,
        num_blocks,
        rows.num_rows.bit_length(),
        plan.target_items,
        window,
        IS_DECODE=plan.is_decode,
        BLOCK_TOKENS=plan.block_tokens,
        TILE=plan.tile,
        MIN_TILES=plan.min_tiles,
        CHUNK=256,
    )
    return Schedule(items, merges)


def attend_rows(layer: Layer, rows: RowRange, plan: Plan, schedule: Schedule, batch: ForwardBatch) -> None:
    """Attention of a range of rows over a cache that holds their keys and values, to `layer.out`."""
    params, query, shape = layer.params, layer.query, layer.shape
    layout = CacheLayout.of(params)
    slots = (2 * plan.target_items, plan.block_tokens, params.num_heads)
    partial_sums = torch.empty((*slots, params.head_size), dtype=torch.float32, device=query.device)
    partial_stats = torch.empty((*slots, 2), dtype=torch.float32, device=query.device)
    attend[(len(schedule.items) * params.num_kv_heads,)](
        query,
        layer.kv_cache,
        layout.scales(layer.kv_cache),
        batch.block_tables,
        schedule.items,
        layer.slopes,
        layer.out,
        partial_sums,
        partial_stats,
        query.stride(0),
        query.stride(1),
        batch.block_tables.stride(0),
        params.scale * _LOG2_E,
        params.window,
        None if params.logit_cap is None else params.logit_cap * _LOG2_E,
        NUM_KV_HEADS=params.num_kv_heads,
        GROUP=shape.group,
        HEAD_SIZE=params.head_size,
        HEAD_LANES=shape.lanes,
        BLOCK_SIZE=batch.block_size,
        BLOCK_TOKENS=plan.block_tokens,
        BLOCK_ROWS=plan.block_rows,
        TILE=plan.tile,
        PITCH=layout.pitch,
        TOKEN=layout.token,
        KIND=layout.kind,
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
    )
    if batch.block_tables.shape[1] * batch.block_size <= plan.min_tiles * plan.tile:
        return  # no context is long enough to be cut
    merge_partials[(plan.target_items * plan.block_tokens * params.num_heads,)](
        partial_sums,
        partial_stats,
        schedule.merges,
        layer.out,
        NUM_HEADS=params.num_heads,
        HEAD_SIZE=params.head_size,
        HEAD_LANES=shape.lanes,
        BLOCK_TOKENS=plan.block_tokens,
        SLOTS=16,
    )


def _ranges(batch: ForwardBatch) -> Iterator[RowRange]:
    num_decodes = batch.num_decode_rows
    if num_decodes:
        yield RowRange(0, num_decodes, num_decodes, is_decode=True)
    if batch.num_requests > num_decodes:
        num_rows, num_tokens = batch.num_requests - num_decodes, batch.num_tokens - num_decodes
        yield RowRange(num_decodes, num_rows, num_tokens, is_decode=False)
