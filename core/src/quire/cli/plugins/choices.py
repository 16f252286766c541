"""Which implementation serves which op, and which backend attention, on a device; and why not the others."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from quire.api.batch import DeviceInfo, DTypeName
from quire.api.config import EngineConfig
from quire.api.errors import PluginError, QuireError
from quire.api.quantization import QuantizationRequest
from quire.api.specs import (
    AttentionBackendSpec,
    FactoryRef,
    OpImplSpec,
    OpSpec,
    QuantizationSpec,
    Registration,
)
from quire.cli.tables import table
from quire.ops.support import origin, refusal_of
from quire.ops.table import OpCandidate, OpDescription, OpTable, outranked
from quire.plugins import PluginHost, resolve_factory
from quire.plugins.quantization_choice import choose_quantization, claim_order

DTYPES: tuple[DTypeName, ...] = typing.get_args(DTypeName)


@dataclass(slots=True, frozen=True)
class Choices:
    """What would be bound on a device, in a dtype.

    Attributes:
        ops: each with its implementations, the best first.
        attention: the backends, the best first; the one without a reason is chosen.
        quantization: by label, the methods in the order of their claims ("" on the fly); with a checkpoint only
            those of its label, and why they do not serve it.
        explanation: of a checkpoint: what would serve its modules, and why.
        problems: what is wrong with an implementation.
    """

    device: DeviceInfo
    dtype: DTypeName
    ops: tuple[OpDescription, ...]
    attention: tuple[OpCandidate, ...]
    quantization: dict[str, tuple[OpCandidate, ...]]
    explanation: tuple[str, ...]
    problems: tuple[str, ...]


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Declare `--dtype` and `--device`."""
    parser.add_argument(
        "--dtype",
        dest="asked_dtype",
        choices=DTYPES,
        metavar="NAME",
        default="bfloat16",
        help=f"of the model that is asked about, one of {', '.join(DTYPES)} (default: bfloat16)",
    )
    parser.add_argument(
        "--device",
        dest="asked_device",
        metavar="NAME",
        default="cpu",
        help="auto, cpu, cuda or cuda:N (default: cpu)",
    )


def add_checkpoint_flag(parser: argparse.ArgumentParser) -> None:
    """Declare `--checkpoint`."""
    parser.add_argument(
        "--checkpoint",
        dest="asked_checkpoint",
        metavar="MODEL",
        help="a model folder or name: say which quantization method serves it, and why not the others",
    )


def choose(host: PluginHost, args: argparse.Namespace) -> Choices:
    """Ask every implementation about the device and dtype of the flags; imports torch.

    Raises:
        DeviceError: there is no such device here.
    """
    from quire.execution.device import detect_device

    device, dtype = detect_device(args.asked_device), cast(DTypeName, args.asked_dtype)
    problems: list[str] = []
    registrations = list(host.ops.registrations())
    for registration in host.op_impls.registrations():
        spec = cast(OpImplSpec, registration.spec)
        if spec.op in host.ops:
            registrations.append(_guarded(registration, problems))
        else:
            problems.append(
                f"{origin(registration)} implements the op {spec.op!r}, which no enabled plugin registers: "
                "enable the plugin that brings it, or register an OpSpec"
            )
    # Nothing is imported for the table: what is chosen is tried below, and what is wrong with it collected.
    ops = OpTable(registrations, device, dtype, lambda *_: object).describe()
    attention = _attention(
        [_guarded(entry, problems) for entry in host.attention_backends.registrations()], device, dtype
    )
    if not any(candidate.reason is None for candidate in attention):
        problems.append(f"no attention backend serves {dtype} on {device.type}: install or enable one")
    problems += _import_problems(host, ops, attention)
    checkpoint = getattr(args, "asked_checkpoint", None)
    quantization = _quantization(host, checkpoint, device, dtype)
    try:
        explanation = _explanation(host, checkpoint, device, dtype)
    except QuireError as error:
        explanation = ()
        problems.append(str(error))
    return Choices(device, dtype, tuple(ops), tuple(attention), quantization, explanation, tuple(problems))


def describe_choices(choices: Choices) -> list[str]:
    """Two tables for people."""
    lines = table(
        ("OP", "IMPLEMENTATION", "PRIORITY", "PLUGIN", "SERVES, OR WHY NOT"),
        [row for entry in choices.ops for row in _rows(entry.op, entry.candidates)],
    )
    backends = table(
        ("ATTENTION", "PRIORITY", "PLUGIN", "SERVES, OR WHY NOT"),
        [row[1:] for row in _rows("", choices.attention)],
    )
    methods = table(
        ("LABEL", "QUANTIZATION", "PRIORITY", "PLUGIN", "SERVES, OR WHY NOT"),
        [row for label, claims in choices.quantization.items() for row in _rows(label or "(none)", claims)],
    )
    if choices.quantization:
        backends += ["", *methods]
    if choices.explanation:
        backends += ["", *(f"quantization: {line}" for line in choices.explanation)]
    return [*lines, "", *backends]


def choices_json(choices: Choices) -> dict[str, object]:
    """The same for programs."""
    return {
        "device": choices.device.type,
        "device_name": choices.device.name,
        "dtype": choices.dtype,
        "ops": {
            entry.op: {
                "schema": entry.schema,
                "candidates": [dataclasses.asdict(candidate) for candidate in entry.candidates],
            }
            for entry in choices.ops
        },
        "attention": [dataclasses.asdict(candidate) for candidate in choices.attention],
        "quantization": {
            label: [dataclasses.asdict(claim) for claim in claims]
            for label, claims in choices.quantization.items()
        },
        "quantization_of_checkpoint": list(choices.explanation),
    }


def _rows(op: str, candidates: Sequence[OpCandidate]) -> list[tuple[str, ...]]:
    return [
        (op if not index else "", entry.name, str(entry.priority), entry.origin, entry.reason or "serves")
        for index, entry in enumerate(candidates)
    ]


def _guarded(registration: Registration, problems: list[str]) -> Registration:
    """The registration with a `supports` that answers with a reason where the plugin's raises."""
    spec = cast("OpImplSpec | AttentionBackendSpec", registration.spec)

    def ask(device: DeviceInfo, dtype: DTypeName) -> str | None:
        try:
            return refusal_of(registration, device, dtype)
        except PluginError as error:
            problems.append(str(error))
            return str(error)

    return dataclasses.replace(registration, spec=dataclasses.replace(spec, supports=ask))


def _attention(
    registrations: Sequence[Registration], device: DeviceInfo, dtype: DTypeName
) -> list[OpCandidate]:
    specs = [(cast(AttentionBackendSpec, entry.spec), origin(entry)) for entry in registrations]
    chosen: AttentionBackendSpec | None = None
    candidates = []
    for spec, owner in sorted(specs, key=lambda pair: (-pair[0].priority, pair[0].name)):
        reason = spec.supports(device, dtype)
        if reason is None and chosen is None:
            chosen = spec
        elif reason is None and chosen is not None:
            reason = outranked(chosen.name, chosen.priority, spec.priority)
        candidates.append(OpCandidate(spec.name, owner, spec.priority, reason))
    return candidates


def _quantization(
    host: PluginHost, checkpoint: str | None, device: DeviceInfo, dtype: DTypeName
) -> dict[str, tuple[OpCandidate, ...]]:
    registrations = host.quantizations.registrations()
    if checkpoint is None:
        return {
            label: tuple(
                _claim(entry, _claim_note(entry, index, label)) for index, entry in enumerate(entries)
            )
            for label, entries in claim_order(registrations).items()
        }
    from quire.loading.hf_config import read_hf_config
    from quire.loading.quantization_config import read_quantization_config
    from quire.loading.resolve import resolve_model_folder

    folder = resolve_model_folder(checkpoint, None, host.resolve_model)
    config = read_quantization_config(folder, read_hf_config(folder))
    choice = choose_quantization(registrations, QuantizationRequest(config, device, dtype), None)
    if choice is None:
        return {}
    return {choice.label or "": tuple(_claim(claim.registration, claim.reason) for claim in choice.claims)}


def _explanation(
    host: PluginHost, checkpoint: str | None, device: DeviceInfo, dtype: DTypeName
) -> tuple[str, ...]:
    if checkpoint is None:
        return ()
    from quire.engine.quantization import explain

    return tuple(explain(EngineConfig.from_keywords({"model": checkpoint}), host, device, dtype))


def _claim(entry: Registration, reason: str | None) -> OpCandidate:
    spec = cast(QuantizationSpec, entry.spec)
    return OpCandidate(spec.name, origin(entry), spec.priority, reason)


def _claim_note(entry: Registration, index: int, label: str) -> str:
    name = cast(QuantizationSpec, entry.spec).name
    if not label:
        return f"quantizes while loading: quantization={name!r}"
    return "asked first" if index == 0 else "asked where those before refuse the checkpoint"


def _import_problems(
    host: PluginHost, ops: Sequence[OpDescription], attention: Sequence[OpCandidate]
) -> list[str]:
    """What cannot be imported of the ops' references and of what is chosen."""
    named: list[tuple[FactoryRef, Registration]] = []
    for registration in host.ops.registrations():
        named.append((cast(OpSpec, registration.spec).reference, registration))
    for entry in ops:
        name = f"{entry.op}/{entry.bound.name}"
        if name in host.op_impls:
            named.append((host.op_impls.spec(name).factory, host.op_impls.registration(name)))
    for candidate in attention:
        if candidate.reason is None:
            backend = host.attention_backends.registration(candidate.name)
            named.append((cast(AttentionBackendSpec, backend.spec).factory, backend))
    problems = []
    for reference, registration in named:
        try:
            if not callable(resolve_factory(reference, registration)):
                raise PluginError(f"{reference!r} of {origin(registration)} is not callable")
        except QuireError as error:
            problems.append(str(error))
    return problems
