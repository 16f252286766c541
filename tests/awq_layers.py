"""Random AWQ layers packed field by field with numpy, and unpacked likewise: nothing of the code under test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gptq_layers import Layer

GEMM_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring columns each field of a gemm word holds, lowest bits first."""


def pack_columns(values: np.ndarray, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """int32 [n, m / 8] of integers [n, m]: field i of a word holds its column order[i]."""
    words = np.zeros((values.shape[0], values.shape[1] // 8), np.uint32)
    for field, column in enumerate(order):
        words |= values[:, column::8].astype(np.uint32) << np.uint32(4 * field)
    return torch.from_numpy(words.view(np.int32).copy())


def unpack_columns(words: Tensor, order: tuple[int, ...] = tuple(range(8))) -> np.ndarray:
    """The inverse: integers [n, m] of int32 [n, m / 8]."""
    unsigned = words.numpy().view(np.uint32)
    values = np.zeros((words.shape[0], words.shape[1] * 8), np.int64)
    for field, column in enumerate(order):
        values[:, column::8] = (unsigned >> np.uint32(4 * field)) & np.uint32(15)
    return values


def pack_fast(values: np.ndarray) -> Tensor:
    """int16 [N / 4, K] of integers [N, K]: gemv_fast, one weight at a time."""
    outputs, inputs = values.shape
    words = np.zeros((outputs // 4, inputs), np.uint16)
    for n in range(outputs):
        for k in range(inputs):
            a, b, c = k % 32 // 8, k % 8 // 2, k % 2
            place = k % 64 // 32 * 32 + 8 * b + 4 * c + a
            nibble = n % 4 * 64 + place
            words[n // 4, k // 64 * 64 + nibble // 4] |= int(values[n, k]) << (nibble % 4 * 4)
    return torch.from_numpy(words.view(np.int16).copy())


@dataclass(frozen=True)
class AwqLayout:
    """How a layer is quantized; group_size -1 as in checkpoints."""

    version: str = "gemm"
    group_size: int = 32
    zero_point: bool = True
    inputs: int = 256
    outputs: int = 96
    scales_dtype: torch.dtype = torch.float16

    def config(self, **changes: object) -> dict[str, object]:
        """The quantization_config, as AutoAWQ writes it."""
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": self.group_size,
            "zero_point": self.zero_point,
            "version": self.version,
            "modules_to_not_convert": None,
        } | changes


def make_awq_layer(layout: AwqLayout, seed: int = 0) -> Layer:
    """A random layer; without zero points none are stored, and 8 is meant."""
    rng = np.random.default_rng(seed)
    inputs, outputs = layout.inputs, layout.outputs
    size = inputs if layout.group_size == -1 else layout.group_size
    integers = rng.integers(0, 16, (outputs, inputs))
    zeros = np.full((outputs, inputs // size), 8)
    if layout.zero_point:
        zeros = rng.integers(0, 16, zeros.shape)
        zeros[:2, 0] = (0, 15)
    scales = torch.from_numpy(rng.uniform(0.01, 0.1, zeros.shape)).to(layout.scales_dtype)
    tensors = awq_tensors(layout, integers, zeros, scales)
    groups = np.arange(inputs) // size
    if layout.version == "gemv_fast" and layout.zero_point:
        added = tensors["qzeros"].double().t()[:, groups]
        return Layer(tensors, integers, torch.from_numpy(integers) * scales.double()[:, groups] + added)
    weight = torch.from_numpy((integers - zeros[:, groups]).astype(np.float64)) * scales.double()[:, groups]
    return Layer(tensors, integers, weight)


def awq_tensors(
    layout: AwqLayout, integers: np.ndarray, zeros: np.ndarray, scales: Tensor
) -> dict[str, Tensor]:
    """The tensors of integers [N, K], zero points and scales [N, G]."""
    padded = -(-zeros.shape[1] // 8) * 8
    wide_scales = torch.zeros(zeros.shape[0], padded, dtype=scales.dtype)
    wide_scales[:, : zeros.shape[1]] = scales
    if layout.version == "gemm":
        tensors = {
            "qweight": pack_columns(integers.T, GEMM_COLUMNS),
            "qzeros": pack_columns(zeros.T, GEMM_COLUMNS),
            "scales": scales.t().contiguous(),
        }
    elif layout.version == "gemv":
        wide_zeros = np.zeros(wide_scales.shape, np.int64)
        wide_zeros[:, : zeros.shape[1]] = zeros
        tensors = {
            "qweight": pack_columns(integers),
            "qzeros": pack_columns(wide_zeros),
            "scales": wide_scales,
        }
    else:
        wide_products = torch.zeros_like(wide_scales)
        wide_products[:, : zeros.shape[1]] = -(scales.float() * torch.from_numpy(zeros)).to(scales.dtype)
        tensors = {
            "qweight": pack_fast(integers),
            "qzeros": wide_products.t().contiguous(),
            "scales": wide_scales.t().contiguous(),
        }
    if not layout.zero_point:
        del tensors["qzeros"]
    return tensors
