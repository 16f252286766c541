"""Quantized KV caches: one scale for each token, KV head, and key or value, found when it is written.

A layer's cache is uint8 [num_blocks, block_size, 2 * K * (P + 4)], P being the head size rounded up to a multiple of 4.
Per token come the elements of the K key heads and of the K value heads, each P bytes of which the last P - D are
unused, then 2 * K scales in float32 in the same order. An element times its scale is the value:

- the scale is the largest magnitude of the head over `top`, at least 2**-126: a head of zeros divides nothing by 0;
- int8 elements are value / scale, rounded to the nearest integer, ties to even; `top` is 127;
- fp8_e4m3 elements are value / scale, clamped to 448 and rounded to the nearest e4m3, ties to even; `top` is 448.

The arithmetic is float32. A head with a NaN or an infinity gets a scale that makes all of it NaN or infinite: a
request that went wrong does not look healthy.

Source: Micikevicius et al. 2022 (e4m3); Hooper et al. 2024 for scales per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.api.batch import KVCacheDTypeName
from quire.api.protocols import AttentionParams

SCALE_BYTES = 4
LEAST_SCALE = 2.0**-126


@dataclass(slots=True, frozen=True)
class KVFormat:
    """How elements of a quantized cache are kept.

    Attributes:
        element: their dtype.
        top: the largest magnitude of an element.
    """

    element: torch.dtype
    top: float


KV_FORMATS: dict[KVCacheDTypeName, KVFormat] = {
    "fp8_e4m3": KVFormat(torch.float8_e4m3fn, 448.0),
    "int8": KVFormat(torch.int8, 127.0),
}
"""Of the quantized dtypes; "auto" is not among them."""


def padded_head_size(head_size: int) -> int:
    """Bytes of a head's elements: the scales behind them lie at multiples of 4."""
    return -(-head_size // SCALE_BYTES) * SCALE_BYTES


def quantized_token_bytes(params: AttentionParams) -> int:
    """Bytes of one token of a layer, keys and values together."""
    return 2 * params.num_kv_heads * (padded_head_size(params.head_size) + SCALE_BYTES)


def quantize_heads(x: Tensor, kv_format: KVFormat) -> tuple[Tensor, Tensor]:
    """Quantize heads.

    Args:
        x: [..., D], any floating dtype.
        kv_format: of the elements.

    Returns:
        Elements [..., D] and scales float32 [...].
    """
    wide = x.to(torch.float32)
    scales = (wide.abs().amax(-1) / kv_format.top).clamp_(min=LEAST_SCALE)
    wide = (wide / scales[..., None]).clamp_(-kv_format.top, kv_format.top)
    if not kv_format.element.is_floating_point:
        wide = wide.round_().nan_to_num_(0.0)  # the scale is NaN already
    return wide.to(kv_format.element), scales


def dequantize_heads(elements: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The values of elements [..., D] and float32 scales [...], multiplied in float32 and rounded to `dtype`."""
    return (elements.to(torch.float32) * scales[..., None]).to(dtype)


class QuantizedCache:
    """A view of one layer's quantized cache as tokens.

    Args:
        kv_cache: as in this module's text.
        params: the layer's constants; `kv_cache_dtype` is one of KV_FORMATS.
    """

    def __init__(self, kv_cache: Tensor, params: AttentionParams) -> None:
        self.format = KV_FORMATS[params.kv_cache_dtype]
        self._num_heads, self._head_size = 2 * params.num_kv_heads, params.head_size
        self.tokens = kv_cache.view(-1, quantized_token_bytes(params))

    def write(self, key: Tensor, value: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize keys and values [T, K, D] into slots, int64 [T]; gives them as `read` will."""
        elements, scales = quantize_heads(torch.cat((key, value), dim=1), self.format)
        rows = torch.zeros((len(slots), self.tokens.shape[1]), dtype=torch.uint8, device=self.tokens.device)
        kept_elements, kept_scales = self._parts(rows)
        kept_elements.copy_(elements.view(torch.uint8))
        kept_scales.copy_(scales)
        self.tokens.index_copy_(0, slots, rows)
        both = dequantize_heads(elements, scales, key.dtype)
        return both[:, : key.shape[1]], both[:, key.shape[1] :]

    def read(self, slots: Tensor | slice, dtype: torch.dtype) -> Tensor:
        """Keys, then values of slots, dequantized: [N, 2 * K, D]."""
        rows = self.tokens[slots] if isinstance(slots, slice) else self.tokens.index_select(0, slots)
        elements, scales = self._parts(rows)
        return dequantize_heads(elements.view(self.format.element), scales, dtype)

    def _parts(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Views of rows [N, bytes]: elements uint8 [N, 2 * K, D] and scales float32 [N, 2 * K]."""
        size = rows.shape[1] - self._num_heads * SCALE_BYTES
        elements = rows[:, :size].view(len(rows), self._num_heads, -1)[..., : self._head_size]
        return elements, rows[:, size:].view(torch.float32)
