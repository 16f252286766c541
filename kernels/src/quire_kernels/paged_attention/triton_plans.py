"""How the attention of some rows is cut into programs, by head shape and device. No run-time tuning."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from quire_kernels.triton.plans import Device

_TILE_BYTES = 16 << 10
"""Of the keys of a tile; a few tiles in flight hide the latency of memory, and fit shared memory."""
_MIN_DECODE_TOKENS = 128
_MIN_PROMPT_TOKENS = 512
"""Of an item that is not all of its Q block: a shorter one costs more than it balances."""
_DECODE_PROGRAMS = 4
_PROMPT_PROGRAMS = 2
"""Per processor, where contexts suffice. Estimates, to be fitted where GPUs are."""


@dataclass(slots=True, frozen=True)
class HeadShape:
    """The heads of a layer.

    Attributes:
        group: query heads that share a KV head.
        itemsize: bytes of one value of a query.
        is_quantized: whether the cache's elements are widened in registers.
    """

    num_kv_heads: int
    group: int
    head_size: int
    itemsize: int
    is_quantized: bool = False

    @property
    def lanes(self) -> int:
        """The head size as a power of two that matrix products take."""
        return max(16, power_of_two(self.head_size))


@dataclass(slots=True, frozen=True)
class Plan:
    """Sizes of `attend` and `schedule_items`.

    Attributes:
        is_decode: for rows of one token.
        block_tokens: tokens of a Q block; block_rows: rows of its products, block_tokens * group and padding.
        tile: tokens of a tile.
        min_tiles: of an item that is not all of its Q block.
        target_items: that all tiles are shared out to.
    """

    is_decode: bool
    block_tokens: int
    block_rows: int
    tile: int
    min_tiles: int
    target_items: int
    num_warps: int
    num_stages: int

    def most_blocks(self, num_rows: int, num_tokens: int) -> int:
        """Q blocks that so many rows of together so many tokens may have."""
        return num_rows if self.is_decode else num_rows + num_tokens // self.block_tokens


@functools.cache
def make_plan(shape: HeadShape, device: Device, *, is_decode: bool) -> Plan:
    """The plan for rows of one token, or of any number."""
    group_rows, is_float32 = power_of_two(shape.group), shape.itemsize == 4
    block_rows = max(group_rows, 16 if is_decode else _prompt_rows(shape))
    tile_bytes = _TILE_BYTES // 2 if shape.is_quantized else _TILE_BYTES
    tile = min(64, max(16, tile_bytes // (shape.lanes * shape.itemsize)))
    programs = device.processors * (_DECODE_PROGRAMS if is_decode else _PROMPT_PROGRAMS)
    return Plan(
        is_decode,
        1 if is_decode else block_rows // shape.group,
        block_rows,
        tile,
        min_tiles=(_MIN_DECODE_TOKENS if is_decode else _MIN_PROMPT_TOKENS) // tile,
        target_items=-(-programs // shape.num_kv_heads),
        num_warps=8 if block_rows * shape.lanes >= 128 * 64 or is_float32 else 4,
        num_stages=3 if device.is_cuda else 2,
    )


def power_of_two(size: int) -> int:
    """The least one that is not below `size`."""
    return 1 << (size - 1).bit_length()


def _prompt_rows(shape: HeadShape) -> int:
    """As many as registers hold with their sums; of float32, whose exact products have no matrix unit, few."""
    if shape.itemsize == 4:
        return 16
    return 128 if shape.lanes <= 128 else 64
