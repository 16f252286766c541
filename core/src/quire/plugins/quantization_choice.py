"""Which quantization method serves a checkpoint, in which order methods claim it, and why not the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from quire.api.errors import ConfigError, PluginError, UnsupportedModelError
from quire.api.quantization import QuantizationRequest
from quire.api.specs import QuantizationSpec, Registration
from quire.plugins.registry import describe_origin, nearest


@dataclass(slots=True, frozen=True)
class Claim:
    """A method that claims a label, as the choice saw it.

    Attributes:
        reason: None for the method that serves, else why it does not.
    """

    name: str
    registration: Registration
    reason: str | None

    @property
    def spec(self) -> QuantizationSpec:
        """The method's spec."""
        return cast(QuantizationSpec, self.registration.spec)


@dataclass(slots=True, frozen=True)
class QuantizationChoice:
    """The claims on a checkpoint, in their order.

    Attributes:
        label: the checkpoint's; None: it is quantized on the fly.
    """

    label: str | None
    claims: tuple[Claim, ...]

    @property
    def served(self) -> Claim:
        """The claim that won."""
        return next(claim for claim in self.claims if claim.reason is None)


def claim_order(registrations: Sequence[Registration]) -> dict[str, list[Registration]]:
    """By label: the methods that claim it, in the order in which they are asked; "" for those on the fly."""
    order: dict[str, list[Registration]] = {}
    for entry in sorted(registrations, key=lambda entry: (-_spec(entry).priority, _spec(entry).name)):
        for label in sorted(_labels(_spec(entry))) or [""]:
            order.setdefault(label, []).append(entry)
    return dict(sorted(order.items()))


def choose_quantization(
    registrations: Sequence[Registration],
    request: QuantizationRequest,
    setting: str | None,
    switched_off: Sequence[str] = (),
) -> QuantizationChoice | None:
    """The method that serves a checkpoint; None for a 16-bit checkpoint that stays as it is.

    Args:
        registrations: of QuantizationSpecs.
        request: the checkpoint and the device.
        setting: `quantization`. A checkpoint's label asks for the best method of that format, as leaving it
            out does; a method's name asks for that method alone.
        switched_off: plugins that are installed and off, for messages.

    Raises:
        ConfigError: the setting contradicts the checkpoint, names nothing, or names what does not serve it;
            or two methods of equal priority claim it.
        UnsupportedModelError: no method serves the checkpoint's label here.
    """
    label = None if request.config is None else _normalized(str(request.config["quant_method"]))
    wanted = None if setting is None else _normalized(setting)
    if label is None:
        return None if wanted is None else _on_the_fly(registrations, request, wanted)
    if wanted is not None and wanted.removeprefix("auto-") == label:
        wanted = None
    wanted = wanted and wanted.removeprefix("auto-")
    claimants = [entry for entry in registrations if label in _labels(_spec(entry))]
    if wanted is not None:
        claimants = [entry for entry in claimants if wanted in _names(_spec(entry))]
        if not claimants:
            raise ConfigError(_contradiction(registrations, label, str(setting)))
    claims = tuple(_claims(claimants, request))
    if not any(claim.reason is None for claim in claims):
        raise UnsupportedModelError(_unserved(registrations, label, claims, switched_off))
    return QuantizationChoice(label, claims)


def _on_the_fly(
    registrations: Sequence[Registration], request: QuantizationRequest, wanted: str
) -> QuantizationChoice:
    named = [entry for entry in registrations if wanted.removeprefix("auto-") in _names(_spec(entry))]
    able = [entry for entry in named if not _spec(entry).quant_methods]
    names = sorted(_spec(entry).name for entry in registrations if not _spec(entry).quant_methods)
    if not named and any(wanted in _labels(_spec(entry)) for entry in registrations):
        named = [entry for entry in registrations if wanted in _labels(_spec(entry))]
    if not able:
        there = ", ".join(names) or "none"
        if named:
            raise ConfigError(
                f"quantization={wanted!r} reads checkpoints that are quantized already, and this one is not "
                f"(no quantization_config); to quantize it while loading there are {there}; else leave it out"
            )
        raise ConfigError(f"no quantization method is called {wanted!r}: {nearest(wanted, names)}")
    claims = tuple(_claims(able, request))
    if claims[0].reason is not None:
        raise ConfigError(f"quantization={wanted!r} cannot be used here: {claims[0].reason}")
    return QuantizationChoice(None, claims)


def _claims(claimants: Sequence[Registration], request: QuantizationRequest) -> Iterator[Claim]:
    """In the order of priority; the first that supports the request wins."""
    winner: Registration | None = None
    for entry in sorted(claimants, key=lambda entry: (-_spec(entry).priority, _spec(entry).name)):
        spec = _spec(entry)
        reason = _refusal(entry, request)
        if reason is None and winner is not None:
            first = _spec(winner)
            if first.priority == spec.priority and winner.plugin != entry.plugin:
                raise ConfigError(
                    f"the quantization methods {first.name!r} of {describe_origin(winner)} and {spec.name!r} of "
                    f"{describe_origin(entry)} claim this checkpoint with equal priority: name one "
                    f"(quantization={first.name!r}), give one a higher priority, or switch a plugin off "
                    f"(--no-plugin {entry.plugin})"
                )
            reason = f"{first.name} claims it first (priority {first.priority} over {spec.priority})"
        elif reason is None:
            winner = entry
        yield Claim(spec.name, entry, reason)


def _refusal(entry: Registration, request: QuantizationRequest) -> str | None:
    spec = _spec(entry)
    if spec.supports is None:
        return None
    try:
        answer: object = spec.supports(request)
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{describe_origin(entry)}, {spec.name}: supports() raised {type(error).__name__}: {error}"
        ) from error
    if answer is None or isinstance(answer, str):
        return answer
    raise PluginError(
        f"{describe_origin(entry)}, {spec.name}: supports() answered {answer!r}: it must be None or the reason"
    )


def _contradiction(registrations: Sequence[Registration], label: str, setting: str) -> str:
    serving = sorted(_spec(entry).name for entry in registrations if label in _labels(_spec(entry)))
    names = {name for entry in registrations for name in _names(_spec(entry))}
    known = names | {text for entry in registrations for text in _labels(_spec(entry))}
    there = ", ".join(serving) or "no installed method"
    if _normalized(setting).removeprefix("auto-") not in known:
        return f"no quantization method is called {setting!r}; this checkpoint is {label}, served by {there}"
    return (
        f"quantization={setting!r} contradicts the checkpoint, whose quantization_config says {label!r} "
        f"(served by {there}): leave it out"
    )


def _unserved(
    registrations: Sequence[Registration], label: str, claims: Sequence[Claim], switched_off: Sequence[str]
) -> str:
    hint = f". Installed and off: {', '.join(switched_off)}" if switched_off else ""
    if claims:
        reasons = "; ".join(f"{claim.name}: {claim.reason}" for claim in claims)
        return f"the checkpoint is quantized ({label}) and no method serves it here: {reasons}{hint}"
    labels = sorted({text for entry in registrations for text in _labels(_spec(entry))})
    return (
        f"the checkpoint is quantized with quant_method={label!r}, which no plugin serves; served are "
        f"{', '.join(labels) or 'none'}. Install or enable a plugin for it, or load its 16-bit checkpoint{hint}"
    )


def _spec(entry: Registration) -> QuantizationSpec:
    return cast(QuantizationSpec, entry.spec)


def _labels(spec: QuantizationSpec) -> set[str]:
    return {_normalized(label) for label in spec.quant_methods}


def _names(spec: QuantizationSpec) -> set[str]:
    return {_normalized(name) for name in (spec.name, *spec.aliases)}


def _normalized(name: str) -> str:
    return name.strip().lower().replace("_", "-")
