"""The tile layout, bit by bit, and the references of the linears that read it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from quire.api.errors import ShapeError
from quire.ops.tiled_linear import quantize_rows, w4a16_linear, w8a8_linear, w8a16_linear
from quire.ops.tiles import pack_tiles, tile_columns, unpack_tiles, untile_columns

NAN = float("nan")


def integers(*shape: int, bits: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1 << bits, shape, generator=random, dtype=torch.uint8)


def read_bits(words: Tensor, bits: int, outputs: int) -> np.ndarray:
    """The integers of tiles, one field after the other, by the layout's description alone."""
    order = {4: [0, 2, 4, 6, 1, 3, 5, 7], 8: [0, 2, 1, 3]}[bits]
    unsigned = words.numpy().view(np.uint32)
    values = np.empty((outputs, unsigned.shape[1] * len(order)), dtype=np.int64)
    for output in range(outputs):
        for word in range(unsigned.shape[1]):
            stored = int(unsigned[output // 16, word, output % 16])
            for field, position in enumerate(order):
                values[output, word * len(order) + position] = (stored >> (bits * field)) & ((1 << bits) - 1)
    return values


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 8), (37, 24), (1, 40), (48, 16)])
def test_every_field_of_every_word(bits: int, outputs: int, inputs: int) -> None:
    values = integers(outputs, inputs, bits=bits)
    packed = pack_tiles(values, bits)
    assert packed.shape == (-(-outputs // 16), inputs * bits // 32, 16) and packed.dtype == torch.int32
    assert (read_bits(packed, bits, outputs) == values.numpy()).all()
    assert unpack_tiles(packed, bits)[:outputs].equal(values)
    assert not unpack_tiles(packed, bits)[outputs:].any()


def test_inputs_that_do_not_fill_words_are_refused() -> None:
    with pytest.raises(ShapeError, match="12 inputs do not fill words of 8"):
        pack_tiles(integers(16, 12, bits=4), 4)
    with pytest.raises(ShapeError, match="4 or 8 bits a weight, not 3"):
        pack_tiles(integers(16, 32, bits=3), 3)


def test_columns() -> None:
    table = torch.arange(37 * 3).view(37, 3)
    tiled = tile_columns(table)
    assert tiled.shape == (3, 3, 16) and tiled[2, 1, 4] == table[36, 1] and tiled[2, 1, 5] == 0
    assert untile_columns(tiled)[:37].equal(table)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("has_zeros", [True, False])
@pytest.mark.parametrize(("outputs", "inputs", "groups"), [(37, 64, 2), (16, 24, 3), (50, 40, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_weight_only(
    bits: int, has_zeros: bool, outputs: int, inputs: int, groups: int, dtype: torch.dtype
) -> None:
    values, zeros = integers(outputs, inputs, bits=bits), integers(outputs, groups, bits=bits, seed=1)
    scales, order = torch.rand(outputs, groups) * 0.1, torch.randperm(inputs)
    x, bias = torch.randn(5, inputs).to(dtype), torch.randn(outputs).to(dtype)
    offsets = zeros.double() if has_zeros else torch.full((outputs, groups), 2.0 ** (bits - 1)).double()
    spread = inputs // groups
    weight = (values.double() - offsets.repeat_interleave(spread, 1)) * scales.double().repeat_interleave(
        spread, 1
    )
    op = w4a16_linear if bits == 4 else w8a16_linear
    found = op(
        x,
        pack_tiles(values, bits),
        tile_columns(scales),
        tile_columns(zeros) if has_zeros else None,
        order.int(),
        bias,
        outputs,
    )
    expected = x.double()[:, order] @ weight.t() + bias.double()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    assert found.dtype == dtype and found.shape == (5, outputs)
    assert float((found.double() - expected).norm() / expected.norm()) < tolerance


def test_rounded_inputs_are_exact_integers() -> None:
    values, scales = integers(20, 32, bits=8), torch.rand(20)
    x = torch.randn(3, 32, dtype=torch.float64)
    scale = x.abs().amax(1, keepdim=True) / 127.5
    rounded = (x / scale).round().clamp(-128, 127)
    expected = (rounded @ (values.double() - 128).t()) * scale * scales.double()
    found = w8a8_linear(x, pack_tiles(values, 8), scales, None, None, 20)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_rounding_of_inputs() -> None:
    x = torch.tensor([[127.5, 0.5, 1.5, -2.5], [0.0, 0.0, 0.0, 0.0], [-255.0, 2.0, 3.0, 255.0]])
    rounded, scales = quantize_rows(x)
    assert scales.flatten().tolist() == [1.0, 1.0, 2.0]
    assert rounded.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0], [-128, 1, 2, 127]]
    rounded, scales = quantize_rows(x, torch.tensor([0.5]))
    assert rounded[0].tolist() == [127, 1, 3, -5] and scales.flatten().tolist() == [0.5] * 3


@pytest.mark.parametrize("input_scale", [None, torch.tensor([0.1])])
def test_a_row_of_nan_stays_alone(input_scale: Tensor | None) -> None:
    weight, scales = pack_tiles(integers(20, 32, bits=8), 8), torch.rand(20)
    x = torch.randn(3, 32)
    before = w8a8_linear(x, weight, scales, input_scale, None, 20)
    x[1, 7] = NAN
    after = w8a8_linear(x, weight, scales, input_scale, None, 20)
    assert after[[0, 2]].equal(before[[0, 2]]) and after[1].isnan().all()
