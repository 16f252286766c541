"""The tile layout of integer weights: what w4a16_linear, w8a16_linear and w8a8_linear read.

A tile is 16 output features. Its inputs follow each other in memory, so that a kernel reads one tile
as one stream; a 32-bit word holds 8 (4-bit) or 4 (8-bit) inputs of one output. Within a word inputs
are interleaved (0, 2, 4, 6, 1, 3, 5, 7): a shift and a mask of a word give two neighbours in the two
16-bit halves, which is what 16-bit dot products take, on CPUs and on GPUs.

Source: the interleaving is that of Frantar et al. 2024 (Marlin).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.api.errors import ShapeError

TILE = 16
"""Output features of a tile."""

INPUT_ORDER = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}
"""By bits: which input of its word each 4-bit or 8-bit field holds, lowest bits first."""


def inputs_per_word(bits: int) -> int:
    """How many inputs a 32-bit word holds; ShapeError unless bits is 4 or 8."""
    if bits not in INPUT_ORDER:
        raise ShapeError(f"tiles hold 4 or 8 bits a weight, not {bits}")
    return 32 // bits


def pack_tiles(values: Tensor, bits: int) -> Tensor:
    """Lay out integer weights in tiles; output features are padded with zeros to whole tiles.

    Args:
        values: uint8 [N, K], each below 2**bits.
        bits: 4 or 8.

    Returns:
        int32 [ceil(N / 16), K * bits / 32, 16].

    Raises:
        ShapeError: K is not a multiple of the inputs of a word.
    """
    per_word = inputs_per_word(bits)
    size, inputs = values.shape
    if inputs % per_word:
        raise ShapeError(f"{inputs} inputs do not fill words of {per_word}: a multiple is needed")
    tiles = -(-size // TILE)
    if size != tiles * TILE:
        values = torch.cat([values, values.new_zeros(tiles * TILE - size, inputs)])
    words = values.view(tiles, TILE, inputs // per_word, per_word)[..., list(INPUT_ORDER[bits])]
    if bits == 4:
        words = words[..., 0::2] | (words[..., 1::2] << 4)
    return words.transpose(1, 2).contiguous().view(torch.int32).squeeze(-1)


def unpack_tiles(weight: Tensor, bits: int) -> Tensor:
    """The integers of tiles: uint8 [N, K] of int32 [N / 16, K * bits / 32, 16]."""
    per_word = inputs_per_word(bits)
    tiles, words, _ = weight.shape
    octets = weight.contiguous().view(torch.uint8).view(tiles, words, TILE, 4)
    if bits == 4:
        octets = torch.stack([octets & 15, octets >> 4], dim=-1).flatten(-2)
    values = torch.empty_like(octets)
    values[..., list(INPUT_ORDER[bits])] = octets
    return values.transpose(1, 2).reshape(tiles * TILE, words * per_word)


def tile_columns(table: Tensor) -> Tensor:
    """Scales or zero points [N, G] in the order of tiles: [ceil(N / 16), G, 16], padded with zeros."""
    size, groups = table.shape
    tiles = -(-size // TILE)
    if size != tiles * TILE:
        table = torch.cat([table, table.new_zeros(tiles * TILE - size, groups)])
    return table.view(tiles, TILE, groups).transpose(1, 2).contiguous()


def untile_columns(table: Tensor) -> Tensor:
    """The inverse of `tile_columns`: [N, G], N with the padding."""
    return table.transpose(1, 2).reshape(table.shape[0] * TILE, table.shape[1])
