"""Weights in tiles of integers that are quantized row by row as their tensors arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock

import torch
from torch import Tensor, nn

from quire.nn.linear_method import LinearShape, TensorSlot
from quire.nn.tiles import TILE, inputs_per_word, pack_tiles, tile_columns
from quire.nn.weight_memory import empty_weight
from quire_quantization.on_the_fly.rounding import RoundedRows
from quire_quantization.on_the_fly.workers import Crew

_CHUNK_WEIGHTS = 1 << 17
"""How many weights are quantized at a time: 0.5 MB in float32, so that a chunk's copies fit a core's cache."""


@dataclass(slots=True, frozen=True)
class Rounding:
    """How a layer's weights are rounded.

    Attributes:
        bits: 4 or 8. num_groups: G, scales per output feature.
        round_rows: rounds some output features' weights, float32 [R, K].
        scale_dtype: of the scales, unless some are in bfloat16: then all are. has_zeros: whether there are zeros.
    """

    bits: int
    num_groups: int
    round_rows: Callable[[Tensor], RoundedRows]
    scale_dtype: torch.dtype
    has_zeros: bool = False


class QuantizedOnLoad(nn.Module):
    """A layer's weights in tiles, filled from tensors in any floating dtype; nothing else is kept of them.

    Attributes:
        weight: int32 [tiles, K * bits / 32, 16].
        scales: [tiles, G, 16], in the dtype of those that the rounding gives.
        zeros: uint8 [tiles, G, 16] or None.
        bias: [N] in the model's dtype, or None.
    """

    weight: Tensor
    scales: Tensor
    zeros: Tensor | None
    bias: Tensor | None

    def __init__(self, shape: LinearShape, rounding: Rounding, crew: Crew) -> None:
        """Allocate the tiles of a layer, which stay untouched, and out of memory, until its tensors arrive."""
        super().__init__()
        self._shape, self._rounding = shape, rounding
        self._crew: Crew | None = crew
        tiles, groups = -(-shape.out_features // TILE), rounding.num_groups
        words = shape.in_features // inputs_per_word(rounding.bits)

        def table(columns: int, dtype: torch.dtype) -> Tensor:
            made = empty_weight((tiles, columns, TILE), dtype, shape.device)
            made[-1:].zero_()  # the last tile may have rows that no tensor fills
            return made

        bias = torch.empty(shape.out_features, dtype=shape.dtype, device=shape.device)
        self.register_buffer("weight", table(words, torch.int32))
        self.register_buffer("scales", table(groups, rounding.scale_dtype))
        self.register_buffer("zeros", table(groups, torch.uint8) if rounding.has_zeros else None)
        self.register_buffer("bias", bias if shape.has_bias else None)

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """See LinearWeights."""
        rows = self._shape.rows(part)
        arriving = torch.empty(
            rows.stop - rows.start, self._shape.in_features, dtype=self._shape.dtype, device="meta"
        )
        store = partial(self._store, rows.start)
        slots = [TensorSlot("weight", arriving, output_dim=0, input_dim=1, store=store)]
        if self.bias is not None:
            slots.append(TensorSlot("bias", self.bias[rows], output_dim=0))
        return slots

    def process_after_loading(self) -> None:
        """See LinearWeights; all is in place already."""
        self._crew = None

    def _store(self, first_row: int, tensor: Tensor) -> None:
        """Quantize [R, K], the layer's rows from `first_row` on; QuantizationError for NaN and infinity."""
        if self._crew is None:
            raise RuntimeError("a tensor came after process_after_loading")
        for_tables = Lock()

        @torch.inference_mode()
        def quantize(rows: slice) -> None:
            values = tensor[rows.start - first_row : rows.stop - first_row].to(
                device=self._shape.device, dtype=torch.float32, memory_format=torch.contiguous_format
            )
            rounded = self._rounding.round_rows(values)
            _place(self.weight, rows, pack_tiles(rounded.integers, self._rounding.bits))
            with for_tables:
                self._place_tables(rows, rounded)

        self._crew.run(quantize, self._chunks(first_row, first_row + len(tensor)))

    def _place_tables(self, rows: slice, rounded: RoundedRows) -> None:
        if rounded.scales.dtype == torch.bfloat16:
            self.scales = self.scales.to(torch.bfloat16)
        _place(self.scales, rows, tile_columns(rounded.scales))
        if self.zeros is not None and rounded.zeros is not None:
            _place(self.zeros, rows, tile_columns(rounded.zeros))

    def _chunks(self, first: int, last: int) -> Iterator[slice]:
        """Rows that begin with a tile, and those before its first beginning."""
        step = max(1, _CHUNK_WEIGHTS // (TILE * self._shape.in_features)) * TILE
        while first < last:
            stop = min(last, first + step if first % TILE == 0 else first + TILE - first % TILE)
            yield slice(first, stop)
            first = stop


def _place(table: Tensor, rows: slice, tiles: Tensor) -> None:
    """Copy rows that were laid out as tiles of their own: whole tiles, then what begins or ends within one."""
    tile, lane = divmod(rows.start, TILE)
    count = rows.stop - rows.start
    whole = 0 if lane else count // TILE
    table[tile : tile + whole] = tiles[:whole]
    rest = count - whole * TILE
    if rest:
        table[tile + whole, :, lane : lane + rest] = tiles[whole, :, :rest]
