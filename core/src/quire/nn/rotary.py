"""Rotary position embedding: one module per model, its rows shared by the layers of a step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quire.api.batch import ForwardBatch
from quire.api.protocols import BuildContext
from quire.nn.dtypes import torch_device, torch_dtype
from quire.nn.rope_config import DynamicScaling, LongRopeScaling, RopeConfig
from quire.nn.rope_frequencies import (
    attention_factor,
    dynamic_inverse_frequencies,
    inverse_frequencies,
    long_inverse_frequencies,
)

_PIECE = 1024
"""Values per call of cos and sin: torch shares more than 2048 between threads, and on a busy machine the second
thread's half of a table has been seen off by about 1e-4."""


class RotaryEmbedding(nn.Module):
    """Rotates queries and keys by their positions (RoPE), with all scalings of transformers 5.

    Angles, cosines and sines are float32, rounded once to the model's dtype; the rotation itself runs
    in that dtype, as in Hugging Face's models. Scalings that depend on the sequence's length read it
    per token from `batch.rope_lens`, so the result does not depend on how a prompt was chunked.

    Attributes:
        op: the op `rotary` that is bound.

    Memory: two tables of `ctx.max_model_len` rows (four for LongRoPE, none for dynamic NTK).

    Source: Su et al. 2021; transformers 5, modeling_rope_utils.py.
    """

    def __init__(self, config: RopeConfig, ctx: BuildContext, *, interleaved: bool = False) -> None:
        """Compute the tables.

        Args:
            config: see `parse_rope_config`.
            ctx: the build context.
            interleaved: pairs are (0, 1), (2, 3), ... (GPT-J) instead of (0, R/2), (1, R/2 + 1), ...
        """
        super().__init__()
        self.config = config
        self.interleaved = interleaved
        self.op = ctx.ops.rotary
        self._dtype = torch_dtype(ctx.dtype)
        self._max_len = ctx.max_model_len
        self._factor = attention_factor(config)
        self._key = (RotaryEmbedding, config, self._dtype)
        self._tables = self._make_tables(torch_device(ctx.device))

    def forward(self, query: Tensor, key: Tensor, batch: ForwardBatch) -> tuple[Tensor, Tensor]:
        """Rotate the first `config.rotary_dim` dimensions of every head; the others pass unchanged.

        Args:
            query: [T, H, D], the model's dtype, last dimension contiguous; overwritten.
            key: [T, K, D], the same.
            batch: gives positions and lengths; its scratch keeps the step's rows for the next layer.

        Returns:
            query and key, rotated in place.
        """
        cos, sin = self.step_rows(batch)
        rotated_query, rotated_key = self.op(query, key, cos, sin, self.interleaved)
        return rotated_query, rotated_key

    def step_rows(self, batch: ForwardBatch) -> tuple[Tensor, Tensor]:
        """`rows` of a step's tokens, made by the first layer that asks."""
        found = batch.scratch.get(self._key)
        if isinstance(found, tuple):
            cos, sin = found
        else:
            cos, sin = batch.scratch[self._key] = self.rows(batch.positions, batch.rope_lens)
        return cos, sin

    def rows(self, positions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of tokens.

        Args:
            positions: int64 [T].
            lengths: int64 [T], as `batch.rope_lens`; read by length-dependent scalings only.

        Returns:
            cos and sin, each [T, R / 2] in the model's dtype.
        """
        scaling = self.config.scaling
        if isinstance(scaling, DynamicScaling):
            return self._cos_sin(positions, dynamic_inverse_frequencies(self.config, scaling, lengths))
        index = positions
        if isinstance(scaling, LongRopeScaling):
            index = positions + (lengths > scaling.original_len) * self._max_len
        cos, sin = self._tables
        return cos.index_select(0, index), sin.index_select(0, index)

    def _make_tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        scaling = self.config.scaling
        num_rows = 0 if isinstance(scaling, DynamicScaling) else self._max_len
        positions = torch.arange(num_rows, dtype=torch.int64, device=device)
        tables = [self._cos_sin(positions, inverse_frequencies(self.config, device))]
        if isinstance(scaling, LongRopeScaling):
            tables.append(self._cos_sin(positions, long_inverse_frequencies(self.config, scaling, device)))
        return torch.cat([cos for cos, _ in tables]), torch.cat([sin for _, sin in tables])

    def _cos_sin(self, positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [T, R / 2]; `frequencies` is float32 [R / 2] or [T, R / 2]."""
        angles = positions[:, None].to(torch.float32) * frequencies
        pieces = torch.split(angles, max(1, _PIECE // max(1, angles.shape[1])))
        cos, sin = torch.cat([piece.cos() for piece in pieces]), torch.cat([piece.sin() for piece in pieces])
        return (cos * self._factor).to(self._dtype), (sin * self._factor).to(self._dtype)
