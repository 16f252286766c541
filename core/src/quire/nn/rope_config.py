"""A rotary embedding's configuration, parsed once from config.json. Imports no torch.

Source: transformers 5, modeling_rope_utils.py (names, defaults and precedence of the keys).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quire.api.errors import CheckpointError, UnsupportedModelError
from quire.api.hf_config import (
    HFConfig,
    optional_bool,
    optional_float,
    optional_int,
    optional_mapping,
    optional_str,
    require_float,
    require_floats,
    require_int,
)


@dataclass(slots=True, frozen=True)
class LinearScaling:
    """All frequencies divided by `factor` (kaiokendev)."""

    factor: float


@dataclass(slots=True, frozen=True)
class DynamicScaling:
    """NTK-aware base that grows with the sequence once it is longer than `original_len`."""

    factor: float
    original_len: int


@dataclass(slots=True, frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): interpolates low frequencies only, with an attention temperature."""

    factor: float
    original_len: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    attention_factor: float | None
    mscale: float | None
    mscale_all_dim: float | None


@dataclass(slots=True, frozen=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024): per-frequency factors, others past `original_len`."""

    factor: float
    original_len: int
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    attention_factor: float | None


@dataclass(slots=True, frozen=True)
class Llama3Scaling:
    """Llama 3.1's piecewise scaling by wavelength."""

    factor: float
    original_len: int
    low_freq_factor: float
    high_freq_factor: float


@dataclass(slots=True, frozen=True)
class ProportionalScaling:
    """Only the first `num_rotated` frequencies turn; the rest of the head keeps still (frequency 0)."""

    factor: float
    num_rotated: int


RopeScaling = (
    LinearScaling | DynamicScaling | YarnScaling | LongRopeScaling | Llama3Scaling | ProportionalScaling
)


@dataclass(slots=True, frozen=True)
class RopeConfig:
    """Everything that a rotary embedding's tables depend on, besides the dtype.

    Attributes:
        head_size: D. rotary_dim: how many leading dimensions of a head are rotated; even.
        theta: the base period.
        max_len: longest context that the scaling is meant for.
        scaling: None is the plain embedding (type "default").
    """

    head_size: int
    rotary_dim: int
    theta: float
    max_len: int
    scaling: RopeScaling | None = None

    @property
    def switch_len(self) -> int | None:
        """Sequence length past which the frequencies depend on the sequence's own length; None: never."""
        if isinstance(self.scaling, DynamicScaling | LongRopeScaling):
            return self.scaling.original_len
        return None


@dataclass(slots=True, frozen=True)
class _Source:
    """The rope parameters of a config.json, in one place whatever their spelling."""

    params: HFConfig
    head_size: int
    rotary_dim: int
    max_position_embeddings: int
    original_len: int


def parse_rope_config(
    config: HFConfig, *, head_size: int, max_position_embeddings: int, default_theta: float = 10000.0
) -> RopeConfig:
    """Parse the rotary parameters of a config.json.

    Both spellings are read: `rope_theta` with `rope_scaling` (transformers 4) and `rope_parameters`
    (transformers 5); inside, `rope_type` and the older `type`.

    Args:
        config: the parsed config.json.
        head_size: D.
        max_position_embeddings: as in the config.
        default_theta: the architecture's base where the config has none.

    Raises:
        UnsupportedModelError: an unknown rope type (names the known ones), per-layer-type parameters.
        CheckpointError: a value is missing, of a wrong type or out of range.
    """
    params = optional_mapping(config, "rope_scaling") or optional_mapping(config, "rope_parameters") or {}
    nested = [key for key, value in params.items() if isinstance(value, dict)]
    if nested:
        raise UnsupportedModelError(
            f"rope_parameters: parameters per layer type ({nested[0]}) are not served"
        )
    rope_type = optional_str(params, "rope_type", default=optional_str(params, "type", default="default"))
    theta = _first_float(params, config, "rope_theta", default_theta)
    partial = _first_float(params, config, "partial_rotary_factor", 1.0)
    if partial > 1:
        raise CheckpointError(f"config.json: partial_rotary_factor is {partial}; it must be at most 1")
    rotary_dim = head_size if rope_type == "proportional" else int(head_size * partial)
    if rotary_dim < 2 or rotary_dim % 2:
        raise UnsupportedModelError(
            f"rope: {rotary_dim} of a head's {head_size} dimensions would be rotated; "
            "the number must be even and at least 2"
        )
    if rope_type == "default":
        return RopeConfig(head_size, rotary_dim, theta, max_position_embeddings)
    parsers = _parsers()
    if rope_type not in parsers:
        known = ", ".join(("default", *sorted(parsers)))
        raise UnsupportedModelError(f"rope type {rope_type!r} is not served; served are {known}")
    original = optional_int(config, "original_max_position_embeddings", minimum=1)
    original = original or optional_int(params, "original_max_position_embeddings", minimum=1)
    source = _Source(
        params, head_size, rotary_dim, max_position_embeddings, original or max_position_embeddings
    )
    scaling = parsers[rope_type](source)
    return RopeConfig(head_size, rotary_dim, theta, _max_len(scaling, max_position_embeddings), scaling)


def _first_float(params: HFConfig, config: HFConfig, name: str, default: float) -> float:
    """The number called `name` inside the rope parameters, else beside them, else the default."""
    inner = optional_float(params, name, above=0.0)
    if inner is not None:
        return inner
    outer = optional_float(config, name, above=0.0)
    return default if outer is None else outer


def _max_len(scaling: RopeScaling, max_position_embeddings: int) -> int:
    """Longest context: linear and dynamic stretch the config's, YaRN its original one."""
    if isinstance(scaling, LinearScaling | DynamicScaling):
        return max(max_position_embeddings, int(max_position_embeddings * scaling.factor))
    if isinstance(scaling, YarnScaling):
        return max(max_position_embeddings, int(scaling.original_len * scaling.factor))
    return max_position_embeddings


def _parsers() -> Mapping[str, Callable[[_Source], RopeScaling]]:
    return {
        "linear": lambda source: LinearScaling(require_float(source.params, "factor", above=0.0)),
        "dynamic": _parse_dynamic,
        "yarn": _parse_yarn,
        "longrope": _parse_longrope,
        "llama3": _parse_llama3,
        "proportional": _parse_proportional,
    }


def _parse_dynamic(source: _Source) -> DynamicScaling:
    factor = require_float(source.params, "factor", above=0.0)
    if factor < 1:
        raise CheckpointError(f"config.json: rope factor is {factor}; for type dynamic it must be at least 1")
    if source.rotary_dim == 2:
        raise UnsupportedModelError(
            "rope type dynamic divides by d - 2: more than 2 dimensions must be rotated"
        )
    return DynamicScaling(factor, source.max_position_embeddings)


def _parse_yarn(source: _Source) -> YarnScaling:
    params = source.params
    factor = optional_float(params, "factor", above=0.0)
    return YarnScaling(
        factor=source.max_position_embeddings / source.original_len if factor is None else factor,
        original_len=source.original_len,
        beta_fast=optional_float(params, "beta_fast") or 32.0,
        beta_slow=optional_float(params, "beta_slow") or 1.0,
        truncate=optional_bool(params, "truncate", default=True),
        attention_factor=optional_float(params, "attention_factor"),
        mscale=optional_float(params, "mscale"),
        mscale_all_dim=optional_float(params, "mscale_all_dim"),
    )


def _parse_longrope(source: _Source) -> LongRopeScaling:
    params = source.params
    factor = optional_float(params, "factor", above=0.0)
    return LongRopeScaling(
        factor=source.max_position_embeddings / source.original_len if factor is None else factor,
        original_len=source.original_len,
        short_factor=require_floats(params, "short_factor", length=source.rotary_dim // 2),
        long_factor=require_floats(params, "long_factor", length=source.rotary_dim // 2),
        attention_factor=optional_float(params, "attention_factor"),
    )


def _parse_llama3(source: _Source) -> Llama3Scaling:
    low = require_float(source.params, "low_freq_factor", above=0.0)
    high = require_float(source.params, "high_freq_factor", above=0.0)
    if high <= low:
        raise CheckpointError(f"config.json: rope high_freq_factor {high} is not above low_freq_factor {low}")
    return Llama3Scaling(require_float(source.params, "factor", above=0.0), source.original_len, low, high)


def _parse_proportional(source: _Source) -> ProportionalScaling:
    proportion = optional_float(source.params, "partial_rotary_factor")
    factor = optional_float(source.params, "factor", above=0.0)
    num_rotated = int((1.0 if proportion is None else proportion) * source.head_size // 2)
    return ProportionalScaling(1.0 if factor is None else factor, num_rotated)


def parse_full_rope(config: HFConfig, head_size: int) -> RopeConfig:
    """`parse_rope_config` of an architecture whose whole heads turn.

    Raises:
        UnsupportedModelError: a partial rotary factor, which such architectures do not know.
    """
    max_len = require_int(config, "max_position_embeddings", minimum=1)
    rope = parse_rope_config(config, head_size=head_size, max_position_embeddings=max_len)
    if rope.rotary_dim != head_size:
        raise UnsupportedModelError(
            f"config.json: partial_rotary_factor rotates {rope.rotary_dim} of {head_size} dimensions; "
            "this architecture rotates all of them"
        )
    return rope
