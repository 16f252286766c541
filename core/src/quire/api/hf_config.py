"""Typed readers of a parsed config.json: what model plugins build their own configuration from.

Every reader names the key, the value found and what was expected. A missing key and a null one are
the same, as they are in Hugging Face's configurations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from quire.api.errors import CheckpointError, UnsupportedModelError

HFConfig = Mapping[str, object]
"""A parsed config.json, or an object inside it."""


def require_int(config: HFConfig, name: str, *, minimum: int | None = None) -> int:
    """The integer called `name`; raises CheckpointError when it is missing, not an integer or too small."""
    value = optional_int(config, name, minimum=minimum)
    if value is None:
        raise _missing(name, "an integer")
    return value


def optional_int(config: HFConfig, name: str, *, minimum: int | None = None) -> int | None:
    """Like `require_int`, with None for a missing or null key."""
    value = config.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(name, value, "an integer")
    if minimum is not None and value < minimum:
        raise CheckpointError(f"config.json: {name} is {value}; it must be at least {minimum}")
    return value


def require_float(config: HFConfig, name: str, *, above: float | None = None) -> float:
    """The finite number called `name`, larger than `above`; raises CheckpointError otherwise."""
    value = optional_float(config, name, above=above)
    if value is None:
        raise _missing(name, "a number")
    return value


def optional_float(config: HFConfig, name: str, *, above: float | None = None) -> float | None:
    """Like `require_float`, with None for a missing or null key."""
    value = config.get(name)
    if value is None:
        return None
    number = _finite(name, value)
    if above is not None and number <= above:
        raise CheckpointError(f"config.json: {name} is {value}; it must be more than {above:g}")
    return number


def require_floats(config: HFConfig, name: str, *, length: int) -> tuple[float, ...]:
    """The list of `length` finite numbers called `name`; raises CheckpointError otherwise."""
    value = config.get(name)
    if value is None:
        raise _missing(name, f"a list of {length} numbers")
    if not isinstance(value, list):
        raise _wrong_type(name, value, f"a list of {length} numbers")
    if len(value) != length:
        raise CheckpointError(f"config.json: {name} has {len(value)} numbers; {length} are needed")
    return tuple(_finite(f"{name}[{i}]", item) for i, item in enumerate(value))


def optional_bool(config: HFConfig, name: str, *, default: bool) -> bool:
    """The boolean called `name`, or `default`; raises CheckpointError for anything but true and false."""
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _wrong_type(name, value, "true or false")
    return value


def optional_str(config: HFConfig, name: str, *, default: str) -> str:
    """The string called `name`, or `default`; raises CheckpointError for anything but a string."""
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise _wrong_type(name, value, "a string")
    return value


def optional_strings(config: HFConfig, name: str) -> tuple[str, ...] | None:
    """The list of strings called `name`, or None; raises CheckpointError for anything but such a list."""
    value = config.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong_type(name, value, "a list of strings")
    return tuple(value)


def optional_mapping(config: HFConfig, name: str) -> HFConfig | None:
    """The object called `name`, or None; raises CheckpointError for anything but an object."""
    value = config.get(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _wrong_type(name, value, "an object")
    return value


def require_choice(config: HFConfig, name: str, choices: Mapping[str, str], *, default: str) -> str:
    """What `choices` has for the string called `name`; raises UnsupportedModelError naming the choices."""
    value = optional_str(config, name, default=default)
    if value not in choices:
        served = ", ".join(sorted(choices))
        raise UnsupportedModelError(f"config.json: {name} {value!r} is not served; served are {served}")
    return choices[value]


@dataclass(slots=True, frozen=True)
class HeadLayout:
    """The attention heads of a model: H query heads and K KV heads of size D."""

    num_heads: int
    num_kv_heads: int
    head_size: int


def require_heads(config: HFConfig) -> HeadLayout:
    """The heads by the keys that Llama and its relatives use.

    `num_key_value_heads` missing or null means as many as `num_attention_heads`; `head_dim` missing
    or null means `hidden_size // num_attention_heads`. Raises CheckpointError where they do not divide.
    """
    num_heads = require_int(config, "num_attention_heads", minimum=1)
    num_kv_heads = optional_int(config, "num_key_value_heads", minimum=1) or num_heads
    _check_divides(num_heads, num_kv_heads, "num_attention_heads", "num_key_value_heads")
    head_size = optional_int(config, "head_dim", minimum=1)
    if head_size is None:
        hidden_size = require_int(config, "hidden_size", minimum=1)
        _check_divides(hidden_size, num_heads, "hidden_size", "num_attention_heads")
        head_size = hidden_size // num_heads
    return HeadLayout(num_heads, num_kv_heads, head_size)


def layer_windows(config: HFConfig, num_layers: int) -> tuple[int | None, ...]:
    """Each layer's attention window (see AttentionParams) by the keys that Qwen's models use.

    None everywhere unless `use_sliding_window`. By `layer_types`, where the config has them; else the
    layers from `max_window_layers` on slide.

    Raises:
        CheckpointError: `layer_types` has another length, or a sliding layer and no window in use.
        UnsupportedModelError: a layer is neither full_attention nor sliding_attention.
    """
    window = optional_int(config, "sliding_window", minimum=1)
    if not optional_bool(config, "use_sliding_window", default=False):
        window = None
    types = optional_strings(config, "layer_types")
    if types is None:
        first = optional_int(config, "max_window_layers", minimum=0)
        first = 28 if first is None else first
        return tuple(window if index >= first else None for index in range(num_layers))
    if len(types) != num_layers:
        raise CheckpointError(
            f"config.json: layer_types has {len(types)} entries; num_hidden_layers is {num_layers}"
        )
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown:
        raise UnsupportedModelError(
            f"config.json: layer type {unknown[0]!r} is not served; "
            "served are full_attention and sliding_attention"
        )
    if "sliding_attention" in types and window is None:
        raise CheckpointError(
            "config.json: layer_types has sliding_attention; it needs a sliding_window in use"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _check_divides(value: int, divisor: int, value_name: str, divisor_name: str) -> None:
    if value % divisor:
        raise CheckpointError(f"config.json: {value_name} {value} is no multiple of {divisor_name} {divisor}")


def _finite(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, value, "a number")
    if not math.isfinite(value):
        raise CheckpointError(f"config.json: {name} is {value}; it must be finite")
    return float(value)


def _missing(name: str, expected: str) -> CheckpointError:
    return CheckpointError(f"config.json: {name} is missing; it must be {expected}")


def _wrong_type(name: str, value: object, expected: str) -> CheckpointError:
    return CheckpointError(
        f"config.json: {name} is {value!r:.80} ({type(value).__name__}); it must be {expected}"
    )
