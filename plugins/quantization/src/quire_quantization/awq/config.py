"""What an AWQ checkpoint says of itself, in the spellings of AutoAWQ, transformers and GPTQModel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from quire.api.errors import QuantizationError
from quire_quantization.dynamic import DynamicRule, first_match, parse_dynamic

Layout = Literal["gemm", "gemv", "gemv_fast"]
"""How tensors are packed; AutoAWQ calls it `version`, GPTQModel `format` and `checkpoint_format`."""

BITS = 4
_PACK_DTYPES: Mapping[Layout, tuple[str, ...]] = {
    "gemm": ("int32",),
    "gemv": ("int32",),
    "gemv_fast": ("int16", "int32"),
}


@dataclass(slots=True, frozen=True)
class AwqConfig:
    """The quantization_config of an AWQ checkpoint, checked.

    Attributes:
        layout: of the packed tensors.
        group_size: inputs that share a scale; None: all inputs of an output ("group_size": -1).
        has_zero_point: whether modules must store zero points; where none is stored it is 8.
        skipped: modules whose names contain one of these stay in 16 bits.
        dynamic: what differs by module.
    """

    layout: Layout
    group_size: int | None
    has_zero_point: bool
    skipped: tuple[str, ...]
    dynamic: tuple[DynamicRule, ...]

    def group_size_of(self, name: str, in_features: int) -> int:
        """The group size of one module; QuantizationError where `dynamic` asks for what AWQ does not have."""
        rule = first_match(self.dynamic, name)
        if rule is None or rule.overrides is None:
            return self.group_size or in_features
        where = f"quantization_config: {rule.place}: "
        _check_bits(rule.overrides, where)
        return _group_size(rule.overrides, where, self.group_size) or in_features

    def skip_reason(self, name: str) -> str:
        """Which entry leaves a module in 16 bits; "" where none does."""
        for key in self.skipped:
            if key in name:
                return f"modules_to_not_convert names {key!r}"
        rule = first_match(self.dynamic, name)
        return f"dynamic has {rule.key!r}" if rule is not None and rule.overrides is None else ""


def parse_config(config: Mapping[str, object]) -> AwqConfig:
    """Read a quantization_config; what is left out is as AutoAWQ has it: 4 bits, groups of 128, gemm, zero points.

    Raises:
        QuantizationError: it contradicts itself, is malformed, or asks for what AWQ here does not have.

    Source: awq/models/_config.py of AutoAWQ 0.2.9, quantization/config.py of GPTQModel 7.6.
    """
    where = "quantization_config: "
    _check_bits(config, where)
    layout = _layout(config, where)
    pack_dtype = _agreed(config, ("pack_dtype",), where, None)
    if pack_dtype is not None and pack_dtype not in _PACK_DTYPES[layout]:
        raise QuantizationError(
            f"{where}pack_dtype={pack_dtype!r}; version {layout!r} packs into {' or '.join(_PACK_DTYPES[layout])}: "
            "quantize anew with that pack_dtype"
        )
    zero_point = _agreed(config, ("zero_point",), where, True)
    if not isinstance(zero_point, bool):
        raise QuantizationError(f"{where}zero_point={zero_point!r} must be true or false")
    return AwqConfig(
        layout,
        _group_size(config, where, 128),
        zero_point,
        _skipped(config, where),
        parse_dynamic(config.get("dynamic")),
    )


def _agreed(config: Mapping[str, object], keys: Sequence[str], where: str, default: object) -> object:
    """The value under any of some keys that mean the same; QuantizationError where they differ."""
    found = {key: config[key] for key in keys if config.get(key) is not None}
    values = list(found.values())
    if any(value != values[0] for value in values):
        listed = " and ".join(f"{key}={value!r}" for key, value in found.items())
        raise QuantizationError(
            f"{where}{listed} contradict each other; keep the one the tensors were made with"
        )
    return values[0] if values else default


def _check_bits(config: Mapping[str, object], where: str) -> None:
    bits = _agreed(config, ("bits", "w_bit"), where, BITS)
    if isinstance(bits, bool) or bits != BITS:
        raise QuantizationError(
            f"{where}bits={bits!r}; AWQ is served with {BITS} bits only: quantize with {BITS} bits, or as GPTQ"
        )


def _group_size(config: Mapping[str, object], where: str, default: int | None) -> int | None:
    size = _agreed(config, ("group_size", "q_group_size"), where, -1 if default is None else default)
    if isinstance(size, bool) or not isinstance(size, int) or (size < 1 and size != -1):
        raise QuantizationError(f"{where}group_size={size!r} must be a positive integer, or -1 for one group")
    return None if size == -1 else size


def _layout(config: Mapping[str, object], where: str) -> Layout:
    keys = ("version", "format", "checkpoint_format")
    spelled = {key: str(config[key]).lower() for key in keys if config.get(key) is not None}
    found = _agreed(spelled, keys, where, "gemm")
    if config.get("backend") == "llm-awq":
        found = "llm-awq"
    if found not in get_args(Layout):
        raise QuantizationError(
            f"{where}version={found!r} is not served; served are {', '.join(get_args(Layout))}: "
            "save the checkpoint with version gemm"
        )
    return cast(Layout, found)


def _skipped(config: Mapping[str, object], where: str) -> tuple[str, ...]:
    names = _agreed(config, ("modules_to_not_convert",), where, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise QuantizationError(
            f"{where}modules_to_not_convert={names!r} must be a list of parts of module names"
        )
    return tuple(names)
