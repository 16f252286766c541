"""The rotary module: its rows, its pairings, and that layers of one step share them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from quire.api.batch import DeviceInfo, ForwardBatch
from quire.nn.rope_config import DynamicScaling, LongRopeScaling, RopeConfig, RopeScaling
from quire.nn.rotary import RotaryEmbedding
from quire.ops.rotary import rotary


def context(dtype: str = "float32") -> Any:
    return SimpleNamespace(
        dtype=dtype, device=DeviceInfo("cpu"), max_model_len=32, ops=SimpleNamespace(rotary=rotary)
    )


def batch(positions: list[int], lengths: list[int] | None = None) -> ForwardBatch:
    count, empty = len(positions), torch.empty(0, dtype=torch.int32)
    return ForwardBatch(
        token_ids=torch.zeros(count, dtype=torch.int64),
        positions=torch.tensor(positions),
        rope_lens=torch.tensor(lengths or [position + 1 for position in positions]),
        query_start=empty,
        seq_lens=empty,
        slot_mapping=empty,
        block_tables=empty,
        logits_rows=empty,
        query_lens=[count],
        context_lens=[count],
        num_decode_rows=0,
        block_size=4,
    )


def by_hand(x: Tensor, positions: list[int], rotary_dim: int, *, interleaved: bool) -> Tensor:
    """Complex multiplication of the pairs, in float64."""
    half = rotary_dim // 2
    frequencies = 1.0 / 10000.0 ** (torch.arange(half, dtype=torch.float64) * 2 / rotary_dim)
    angles = torch.tensor(positions, dtype=torch.float64)[:, None] * frequencies
    turns = torch.polar(torch.ones_like(angles), angles)[:, None]
    rotated = x[..., :rotary_dim].double()
    pairs = (
        rotated.unflatten(-1, (half, 2))
        if interleaved
        else rotated.unflatten(-1, (2, half)).transpose(-1, -2)
    )
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turns)
    turned = turned if interleaved else turned.transpose(-1, -2)
    return torch.cat((turned.flatten(-2), x[..., rotary_dim:].double()), dim=-1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [8, 4])
def test_rotates_pairs(rotary_dim: int, interleaved: bool) -> None:
    module = RotaryEmbedding(RopeConfig(8, rotary_dim, 10000.0, 32), context(), interleaved=interleaved)
    positions = [0, 3, 31, 7]
    query, key = torch.randn(4, 4, 8), torch.randn(4, 2, 8)
    expected = [by_hand(x, positions, rotary_dim, interleaved=interleaved) for x in (query, key)]
    found = module(query, key, batch(positions))
    for tensor, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(tensor.double(), reference, atol=1e-5, rtol=1e-5)


def test_layers_of_a_step_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RopeConfig(8, 8, 10000.0, 32)
    module, twin = RotaryEmbedding(config, context()), RotaryEmbedding(config, context())
    other = RotaryEmbedding(RopeConfig(8, 8, 500.0, 32), context())
    calls: list[RotaryEmbedding] = []
    rows = RotaryEmbedding.rows
    monkeypatch.setattr(
        RotaryEmbedding, "rows", lambda self, *args: (calls.append(self), rows(self, *args))[1]
    )
    step = batch([1, 2])
    for layer in (module, module, twin, other, other):
        layer(torch.randn(2, 1, 8), torch.randn(2, 1, 8), step)
    assert calls == [module, other]
    module(torch.randn(2, 1, 8), torch.randn(2, 1, 8), batch([3, 4]))
    assert calls == [module, other, module]


@pytest.mark.parametrize(
    "scaling", [DynamicScaling(2.0, 8), LongRopeScaling(2.0, 8, (1.0,) * 4, (1.5, 2.0, 3.0, 4.0), None)]
)
def test_rows_depend_on_each_tokens_own_length(scaling: RopeScaling) -> None:
    module = RotaryEmbedding(RopeConfig(8, 8, 10000.0, 32, scaling), context())
    positions = torch.tensor([5, 5, 5])
    cos, _ = module.rows(positions, torch.tensor([6, 8, 9]))
    assert torch.equal(cos[0], cos[1])
    assert not torch.equal(cos[1], cos[2])


def test_rows_are_rounded_once_to_the_model_dtype() -> None:
    config = RopeConfig(8, 8, 10000.0, 32)
    positions = torch.arange(32)
    exact = RotaryEmbedding(config, context()).rows(positions, positions)
    rounded = RotaryEmbedding(config, context("bfloat16")).rows(positions, positions)
    wide = RotaryEmbedding(config, context("float64")).rows(positions, positions)
    for one, two, three in zip(exact, rounded, wide, strict=True):
        assert two.dtype == torch.bfloat16
        assert torch.equal(one.to(torch.bfloat16), two)
        assert torch.equal(one.to(torch.float64), three)
