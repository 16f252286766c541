"""Which parts of an engine go together: checked before weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quire.api.batch import DeviceInfo, DTypeName
from quire.api.config import EngineConfig
from quire.api.errors import ConfigError
from quire.api.specs import Capabilities


@dataclass(slots=True, frozen=True)
class Combination:
    """What an engine is about to be made of; None where there is no such part.

    Attributes:
        logits_processors: those that every request gets, or that the engine is to serve; None: those
            that are always on.
        has_sliding_windows: whether a layer of the model sees only the latest tokens.
    """

    config: EngineConfig
    device: DeviceInfo
    dtype: DTypeName
    architecture: str | None = None
    attention_backend: str | None = None
    policy: str | None = None
    drafter: str | None = None
    quantization: str | None = None
    executor: str | None = None
    logits_processors: tuple[str, ...] | None = None
    has_sliding_windows: bool = False


@dataclass(slots=True, frozen=True)
class Part:
    """One part with what it says of itself, and how messages call it."""

    kind: str
    name: str
    owner: str
    capabilities: Capabilities

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} of {self.owner}"


def check_combination(parts: Sequence[Part], combination: Combination) -> None:
    """Refuse what cannot work together.

    Raises:
        ConfigError: every pair that conflicts, each with the remedy.
    """
    conflicts = [text for part in parts for text in _conflicts(part, parts, combination)]
    if conflicts:
        raise ConfigError("; ".join(conflicts))


def _conflicts(part: Part, parts: Sequence[Part], combination: Combination) -> Iterator[str]:
    yield from _value_conflicts(part, combination)
    yield from _part_conflicts(part, parts, combination)


def _value_conflicts(part: Part, combination: Combination) -> Iterator[str]:
    """Between a part and the device, the dtype and the settings."""
    able = part.capabilities
    config = combination.config
    device = combination.device.type
    ranks = config.device.tensor_parallel_size
    if able.dtypes is not None and combination.dtype not in able.dtypes:
        yield _refusal(part, f"dtype={combination.dtype}", _choice("dtype", able.dtypes))
    if able.devices is not None and device not in able.devices:
        yield _refusal(part, f"device={device}", _choice("device", able.devices))
    if ranks > 1 and not able.tensor_parallel:
        yield _refusal(part, f"tensor_parallel_size={ranks}", "give 1")
    if config.cache.enable_prefix_caching and not able.prefix_caching:
        yield _refusal(part, "enable_prefix_caching=True", "set it to False (--no-enable-prefix-caching)")
    if config.scheduler.enable_chunked_prefill and not able.chunked_prefill:
        yield _refusal(part, "enable_chunked_prefill=True", "set it to False (--no-enable-chunked-prefill)")


def _part_conflicts(part: Part, parts: Sequence[Part], combination: Combination) -> Iterator[str]:
    """Between a part and another one."""
    able = part.capabilities
    others = {other.kind: other for other in parts if other is not part}
    method, drafter, model = (others.get(kind) for kind in ("quantization", "drafter", "architecture"))
    if method is not None and able.quantizations is not None and method.name not in able.quantizations:
        valid = ", ".join(able.quantizations) or "none"
        yield _refusal(part, str(method), f"it goes with {valid}: take another checkpoint")
    if drafter is not None and not able.drafts:
        yield _refusal(part, str(drafter), f"leave speculative_config out, or {_without(part)}")
    if model is not None and combination.has_sliding_windows and not able.sliding_windows:
        yield _refusal(part, f"the sliding windows of {model}", _without(part))


def _refusal(part: Part, other: str, remedy: str) -> str:
    return f"{part} does not go with {other}: {remedy}"


def _choice(setting: str, valid: Sequence[str]) -> str:
    return f"set {setting} to {' or '.join(valid)}" if valid else f"it goes with no {setting}"


def _without(part: Part) -> str:
    settings = {"attention backend": "attention_backend", "policy": "scheduling_policy"}
    if part.kind in settings:
        return f"choose another {settings[part.kind]}"
    return f"take another {part.kind}"
