"""The tile layout of integer weights, for quantization methods; see `quire.ops.tiles`."""

from quire.ops.tiles import (
    TILE,
    inputs_per_word,
    pack_tiles,
    tile_columns,
    unpack_tiles,
    untile_columns,
)

__all__ = ["TILE", "inputs_per_word", "pack_tiles", "tile_columns", "unpack_tiles", "untile_columns"]
