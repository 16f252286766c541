"""Inverse frequencies of the rotary embeddings, in float32, operation for operation as transformers 5.

Source: transformers 5, modeling_rope_utils.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quire.nn.rope_config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    RopeConfig,
    YarnScaling,
)


def inverse_frequencies(config: RopeConfig, device: torch.device) -> Tensor:
    """Frequencies of the sequences up to `config.switch_len` (of all sequences, where that is None).

    Returns:
        float32 [R / 2], R = `config.rotary_dim`.
    """
    scaling = config.scaling
    if isinstance(scaling, LinearScaling):
        return _plain(config, device) / scaling.factor
    if isinstance(scaling, ProportionalScaling):
        return _proportional(config, scaling, device)
    if isinstance(scaling, YarnScaling):
        return _yarn(config, scaling, device)
    if isinstance(scaling, LongRopeScaling):
        return _longrope(config, scaling.short_factor, device)
    if isinstance(scaling, Llama3Scaling):
        return _llama3(config, scaling, device)
    if isinstance(scaling, DynamicScaling):
        unstretched = (scaling.factor * scaling.original_len / scaling.original_len) - (scaling.factor - 1)
        base: float = config.theta * unstretched ** (config.rotary_dim / (config.rotary_dim - 2))
        return 1.0 / base ** _exponents(config.rotary_dim, config.rotary_dim, device)
    return _plain(config, device)


def long_inverse_frequencies(config: RopeConfig, scaling: LongRopeScaling, device: torch.device) -> Tensor:
    """LongRoPE's frequencies of sequences past the original length: float32 [R / 2]."""
    return _longrope(config, scaling.long_factor, device)


def dynamic_inverse_frequencies(config: RopeConfig, scaling: DynamicScaling, lengths: Tensor) -> Tensor:
    """Dynamic NTK frequencies for each sequence length.

    Each distinct length is computed alone, since powers of many numbers at once round differently from
    powers of one: so a token's angles do not depend on what else is in its step.

    Args:
        config: its type is dynamic.
        scaling: the config's.
        lengths: int64 [T]; those within the original length get `inverse_frequencies`.

    Returns:
        float32 [T, R / 2].
    """
    dim, factor = config.rotary_dim, scaling.factor
    exponents = _exponents(dim, dim, lengths.device)
    clamped = lengths.clamp(min=scaling.original_len)
    distinct, index = torch.unique(clamped, return_inverse=True)
    rows = []
    for length in distinct:
        if length <= scaling.original_len:
            rows.append(inverse_frequencies(config, lengths.device))
            continue
        stretch = (factor * length / scaling.original_len) - (factor - 1)
        base = config.theta * stretch ** (dim / (dim - 2))
        rows.append(1.0 / base**exponents)
    return torch.stack(rows).index_select(0, index)


def attention_factor(config: RopeConfig) -> float:
    """What cos and sin are multiplied by."""
    scaling = config.scaling
    if not isinstance(scaling, YarnScaling | LongRopeScaling):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if isinstance(scaling, LongRopeScaling):
        if scaling.factor <= 1.0:
            return 1.0
        return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_len))
    if scaling.mscale and scaling.mscale_all_dim:
        return _mscale(scaling.factor, scaling.mscale) / _mscale(scaling.factor, scaling.mscale_all_dim)
    return _mscale(scaling.factor, 1.0)


def _exponents(stop: int, dim: int, device: torch.device) -> Tensor:
    return torch.arange(0, stop, 2, dtype=torch.int64, device=device).to(torch.float32) / dim


def _plain(config: RopeConfig, device: torch.device) -> Tensor:
    return 1.0 / config.theta ** _exponents(config.rotary_dim, config.rotary_dim, device)


def _proportional(config: RopeConfig, scaling: ProportionalScaling, device: torch.device) -> Tensor:
    rotated = 1.0 / config.theta ** _exponents(2 * scaling.num_rotated, config.head_size, device)
    still = torch.zeros(config.head_size // 2 - scaling.num_rotated, dtype=torch.float32, device=device)
    return torch.cat((rotated, still)) / scaling.factor


def _longrope(config: RopeConfig, factors: tuple[float, ...], device: torch.device) -> Tensor:
    exponents = _exponents(config.rotary_dim, config.rotary_dim, device)
    return 1.0 / (torch.tensor(factors, dtype=torch.float32, device=device) * config.theta**exponents)


def _llama3(config: RopeConfig, scaling: Llama3Scaling, device: torch.device) -> Tensor:
    frequencies = _plain(config, device)
    wavelengths = 2 * math.pi / frequencies
    low, high, length = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_len
    scaled = torch.where(wavelengths > length / low, frequencies / scaling.factor, frequencies)
    smooth = (length / wavelengths - low) / (high - low)
    smoothed = (1 - smooth) * scaled / scaling.factor + smooth * scaled
    is_medium = ~(wavelengths < length / high) & ~(wavelengths > length / low)
    return torch.where(is_medium, smoothed, scaled)


def _yarn(config: RopeConfig, scaling: YarnScaling, device: torch.device) -> Tensor:
    dim = config.rotary_dim
    periods = config.theta ** _exponents(dim, dim, device)
    low = _correction_dim(config, scaling, scaling.beta_fast)
    high = _correction_dim(config, scaling, scaling.beta_slow)
    if scaling.truncate:
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(low, 0.0), min(high, dim - 1.0)
    if low == high:
        high += 0.001
    ramp = torch.arange(dim // 2, dtype=torch.float32, device=device)
    extrapolated = 1 - torch.clamp((ramp - low) / (high - low), 0, 1)
    return 1.0 / (scaling.factor * periods) * (1 - extrapolated) + 1.0 / periods * extrapolated


def _correction_dim(config: RopeConfig, scaling: YarnScaling, num_rotations: float) -> float:
    """The dimension that turns `num_rotations` times within the original length."""
    ratio = scaling.original_len / (num_rotations * 2 * math.pi)
    return config.rotary_dim * math.log(ratio) / (2 * math.log(config.theta))


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
