"""The op table: which implementation serves which op, on one device and in one dtype, and why."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

from quire.api.batch import DeviceInfo, DTypeName
from quire.api.errors import PluginError
from quire.api.specs import FactoryRef, OpImplSpec, OpSpec, Registration
from quire.ops.support import origin, refusal_of

if TYPE_CHECKING:
    from torch import Tensor

REFERENCE = "reference"
Resolve = Callable[[FactoryRef, Registration], object]
"""Turns a spec's reference into the object that it names, e.g. `quire.plugins.resolve_factory`."""
Op = Callable[..., object]


class UnknownOpError(PluginError, AttributeError):
    """No registered op has that name."""


@dataclass(slots=True, frozen=True)
class OpCandidate:
    """One implementation of an op, as the table saw it.

    Attributes:
        name: "reference", or the OpImplSpec's.
        origin: plugin, distribution and version that brought it.
        reason: None for the bound implementation, else why it was not bound.
    """

    name: str
    origin: str
    priority: int
    reason: str | None


@dataclass(slots=True, frozen=True)
class OpDescription:
    """An op and its implementations, best first."""

    op: str
    schema: str
    candidates: tuple[OpCandidate, ...]

    @property
    def bound(self) -> OpCandidate:
        """The implementation that serves the op."""
        return next(candidate for candidate in self.candidates if candidate.reason is None)


@dataclass(slots=True, frozen=True)
class _Entry:
    """An implementation or a reference before the choice."""

    name: str
    priority: int
    target: FactoryRef
    registration: Registration
    refusal: str | None


class OpTable:
    """Ops by name, as attributes: `table.rms_norm(x, weight, eps)`. Immutable after construction.

    For each op the supported implementation of the highest priority is bound; between equals the
    first by name. The reference (priority 0) is always there.
    """

    def __init__(
        self, registrations: Iterable[Registration], device: DeviceInfo, dtype: DTypeName, resolve: Resolve
    ) -> None:
        """Choose and import one implementation per op.

        Args:
            registrations: of OpSpecs and OpImplSpecs; others are passed over.
            device: what implementations are asked about.
            dtype: likewise.
            resolve: imports what the specs name.

        Raises:
            PluginError: two specs claim one name, an implementation is of no registered op, its `supports`
                fails, or what was chosen cannot be imported or called.
        """
        self._ops: dict[str, Callable[..., Tensor]] = {}
        self._references: dict[str, Callable[[], object]] = {}
        self._descriptions: list[OpDescription] = []
        known = list(registrations)
        specs = _op_specs(known)
        entries = _entries(known, specs, device, dtype)
        for name in sorted(specs):
            ranked = sorted(entries[name], key=lambda entry: (-entry.priority, entry.name))
            chosen = next(entry for entry in ranked if entry.refusal is None)
            function = resolve(chosen.target, chosen.registration)
            if not callable(function):
                raise PluginError(
                    f"{chosen.target!r} of {origin(chosen.registration)}, {chosen.name} of the op {name!r}, "
                    "is not callable"
                )
            self._ops[name] = cast("Callable[..., Tensor]", function)
            spec = cast(OpSpec, specs[name].spec)
            self._references[name] = partial(resolve, spec.reference, specs[name])
            self._descriptions.append(_describe(name, spec.schema, ranked, chosen))

    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        """The op called `name`; raises UnknownOpError naming the registered ones."""
        ops: dict[str, Callable[..., Tensor]] = self.__dict__.get("_ops", {})
        if name not in ops:
            raise UnknownOpError(f"no op is called {name!r}; registered are {', '.join(ops) or 'none'}")
        return ops[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is an op of that name."""
        return name in self._ops

    def fast(self, name: str) -> Callable[..., Tensor] | None:
        """The op called `name` where more than its reference serves it, else None."""
        bound = next((each.bound.name for each in self._descriptions if each.op == name), REFERENCE)
        return None if bound == REFERENCE else self._ops[name]

    def replaced(self, make: Callable[[OpDescription, Op, Op], Op]) -> OpTable:
        """A table like this one, of other functions.

        Args:
            make: gives what stands for an op, from its description, its bound implementation and its reference.
        """
        table = copy.copy(self)
        table._ops = {}
        for op in self._descriptions:
            reference = cast(Op, self._references[op.op]())
            table._ops[op.op] = cast("Callable[..., Tensor]", make(op, self._ops[op.op], reference))
        return table

    def summary(self) -> str:
        """One line: the implementations that are not the reference, each with its ops."""
        ops: dict[str, list[str]] = {}
        for description in self._descriptions:
            if description.bound.name != REFERENCE:
                ops.setdefault(description.bound.name, []).append(description.op)
        lines = [f"{name} {', '.join(served)}" for name, served in sorted(ops.items())]
        return "; ".join([*lines, "reference for the other ops" if lines else "reference for all ops"])

    def describe(self) -> list[OpDescription]:
        """Every op with what serves it and why the others do not, by name."""
        return list(self._descriptions)


def outranked(chosen: str, chosen_priority: int, priority: int) -> str:
    """Why something that is supported does not serve."""
    if priority == chosen_priority:
        return f"{chosen} has the same priority, {priority}, and its name comes first"
    return f"{chosen} has priority {chosen_priority}, this {priority}"


def _op_specs(registrations: Sequence[Registration]) -> dict[str, Registration]:
    specs: dict[str, Registration] = {}
    for registration in registrations:
        spec = registration.spec
        if not isinstance(spec, OpSpec):
            continue
        if spec.name in specs:
            raise PluginError(
                f"the op {spec.name!r} is registered by {origin(specs[spec.name])} and by "
                f"{origin(registration)}"
            )
        specs[spec.name] = registration
    return specs


def _entries(
    registrations: Sequence[Registration],
    specs: dict[str, Registration],
    device: DeviceInfo,
    dtype: DTypeName,
) -> dict[str, list[_Entry]]:
    entries = {
        name: [_Entry(REFERENCE, 0, cast(OpSpec, registration.spec).reference, registration, None)]
        for name, registration in specs.items()
    }
    for registration in registrations:
        spec = registration.spec
        if not isinstance(spec, OpImplSpec):
            continue
        if spec.op not in specs:
            raise PluginError(
                f"{origin(registration)} implements the op {spec.op!r}, which is not registered; "
                f"registered are {', '.join(sorted(specs)) or 'none'}"
            )
        twin = next((entry for entry in entries[spec.op] if entry.name == spec.name), None)
        if twin is not None:
            raise PluginError(
                f"the implementation {spec.name!r} of the op {spec.op!r} is registered by "
                f"{origin(twin.registration)} and by {origin(registration)}"
            )
        refusal = refusal_of(registration, device, dtype)
        entries[spec.op].append(_Entry(spec.name, spec.priority, spec.factory, registration, refusal))
    return entries


def _describe(name: str, schema: str, ranked: Sequence[_Entry], chosen: _Entry) -> OpDescription:
    candidates = []
    for entry in ranked:
        reason = entry.refusal
        if reason is None and entry is not chosen:
            reason = outranked(chosen.name, chosen.priority, entry.priority)
        candidates.append(OpCandidate(entry.name, origin(entry.registration), entry.priority, reason))
    return OpDescription(name, schema, tuple(candidates))
