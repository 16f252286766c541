"""Attention without SDPA: alibi slopes and logit caps."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.api.protocols import AttentionParams
from quire.ops.attention_groups import RowGroup

_MAX_SCORES = 1 << 24


def plain_attention(
    query: Tensor, keys: Tensor, values: Tensor, group: RowGroup, params: AttentionParams, output: Tensor
) -> None:
    """Attention of one group by matrix products and a softmax, in float32 (float64 where given).

    Queries are taken in pieces so that about 2**24 scores exist at a time.

    Args:
        query: [R, Q, K, G, D].
        keys: [R, L, K, D].
        values: the same.
        group: the rows' positions.
        params: the layer's constants.
        output: [R, Q, K, G, D], overwritten.

    Source: Press et al. 2022 (alibi); Gemma Team 2024 (caps).
    """
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    keys_t = keys.to(wide).permute(0, 2, 3, 1)[:, :, None]  # [R, K, 1, D, L]
    wide_values = values.to(wide).transpose(1, 2)[:, :, None]  # [R, K, 1, L, D]
    bias = group.cached(
        ("bias", params.window, params.alibi_slopes, wide), lambda: _bias(group, params, wide)
    )
    step = max(1, _MAX_SCORES // (group.num_rows * params.num_heads * group.context_len))
    for start in range(0, group.query_len, step):
        piece = slice(start, start + step)
        scores = query[:, piece].to(wide).permute(0, 2, 3, 1, 4) @ keys_t  # [R, K, G, Q, L]
        scores *= params.scale
        if params.logit_cap is not None:
            scores = (scores / params.logit_cap).tanh_().mul_(params.logit_cap)
        scores += bias[:, :, :, piece]
        result = scores.softmax(-1) @ wide_values
        output[:, piece] = result.permute(0, 3, 1, 2, 4).to(output.dtype)


def _bias(group: RowGroup, params: AttentionParams, dtype: torch.dtype) -> Tensor:
    """Alibi's bias where visible, else -inf: [R, K or 1, G or 1, Q, L]."""
    distances = group.distances()[:, None, None]
    visible = group.visible(params.window)[:, None, None]
    if params.alibi_slopes is None:
        bias = torch.zeros(distances.shape, dtype=dtype, device=distances.device)
    else:
        slopes = torch.tensor(params.alibi_slopes, dtype=dtype, device=distances.device)
        slopes = slopes.view(1, params.num_kv_heads, -1, 1, 1)
        bias = -slopes * distances.to(dtype)
    return bias.masked_fill(~visible, float("-inf"))
