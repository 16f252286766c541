"""Reference of the rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops.views import side_by_side


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Rotate the first R features of every head, in place; the others pass unchanged.

    Feature pairs (a, b) become (a cos - b sin, b cos + a sin), each product rounded to the dtype, as
    Hugging Face's models do. Queries and keys that lie side by side in one tensor (a fused QKV
    product) are rotated together.

    Args:
        query: [T, H, D], last dimension contiguous; overwritten.
        key: [T, K, D], likewise.
        cos: [T, R / 2], the same dtype.
        sin: the same.
        interleaved: pairs are features (0, 1), (2, 3), ... instead of (0, R/2), (1, R/2 + 1), ...

    Returns:
        query and key, the tensors that were given.

    Source: Su et al. 2021.
    """
    cos, sin = cos[:, None, None], sin[:, None, None]  # [T, 1, 1, R / 2]
    both = side_by_side(query, key)
    if both is not None:
        _rotate(both, cos, sin, interleaved)
    else:
        _rotate(query, cos, sin, interleaved)
        _rotate(key, cos, sin, interleaved)
    return query, key


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> None:
    half = cos.shape[-1]
    rotated, heads = x[..., : 2 * half], x.shape[:2]
    pairs = rotated.view(*heads, half, 2).transpose(2, 3) if interleaved else rotated.view(*heads, 2, half)
    by_cos, by_sin = pairs * cos, pairs * sin  # [T, H, 2, R / 2]
    torch.sub(by_cos[:, :, 0], by_sin[:, :, 1], out=pairs[:, :, 0])
    torch.add(by_cos[:, :, 1], by_sin[:, :, 0], out=pairs[:, :, 1])
