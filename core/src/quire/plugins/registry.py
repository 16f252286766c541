"""Registries: what plugins brought, by name, and who brought it."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar, cast

from quire.api.errors import PluginError
from quire.api.specs import FactoryRef, Registration

SpecT = TypeVar("SpecT")


def describe_origin(registration: Registration) -> str:
    """Plugin, distribution and version, for messages."""
    origin = f"{registration.distribution} {registration.version}".strip()
    return f"plugin {registration.plugin!r} ({origin})"


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest valid one, else all of them."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there are {', '.join(names)}" if names else "there are none"


class Registry(Generic[SpecT]):
    """Specs of one kind by name. Filled while plugins are loaded, read-only afterwards."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Registration] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def add(self, name: str, registration: Registration) -> None:
        """Register a spec.

        Raises:
            PluginError: another plugin (or the same one) claimed the name; both are named.
        """
        other = self._entries.get(name)
        if other is not None:
            raise PluginError(collision_message(self.kind, name, other, registration))
        self._entries[name] = registration

    def registration(self, name: str) -> Registration:
        """The entry called `name`; PluginError with the nearest name when there is none."""
        entry = self._entries.get(name)
        if entry is None:
            raise PluginError(f"no {self.kind} is called {name!r}: {nearest(name, self._entries)}")
        return entry

    def spec(self, name: str) -> SpecT:
        """The spec called `name`; PluginError with the nearest name when there is none."""
        return cast(SpecT, self.registration(name).spec)

    def get(self, name: str) -> SpecT | None:
        """The spec called `name`, or None."""
        entry = self._entries.get(name)
        return None if entry is None else cast(SpecT, entry.spec)

    def specs(self) -> list[SpecT]:
        """All specs, in the order of their names."""
        return [cast(SpecT, self._entries[name].spec) for name in self]

    def registrations(self) -> list[Registration]:
        """All entries, in the order of their names."""
        return [self._entries[name] for name in self]


def collision_message(kind: str, name: str, first: Registration, second: Registration) -> str:
    """Who claims one name, and the settings that resolve it."""
    if first.plugin == second.plugin:
        return f"{describe_origin(second)} registers the {kind} {name!r} twice"
    return (
        f"the {kind} {name!r} is registered by {describe_origin(first)} and by {describe_origin(second)}: "
        f'prefer one of the two (`prefer = {{"{kind}:{name}" = "{second.plugin}"}}` under [plugins] in '
        f"quire.toml, or --plugin-prefer '{kind}:{name}={second.plugin}'), or deny one "
        f'(--no-plugin {second.plugin}, or `deny = ["{second.plugin}"]`), or uninstall its distribution'
    )


def resolve_factory(reference: FactoryRef, registration: Registration | None = None) -> object:
    """The object that a spec's `factory` or `reference` names, imported now if it is a string.

    Args:
        reference: "module:attribute" (attributes may be dotted), or the object itself.
        registration: whose it is, for the message.

    Raises:
        PluginError: malformed, not importable, or without such an attribute.
    """
    if not isinstance(reference, str):
        return reference
    owner = f" of {describe_origin(registration)}" if registration else ""
    module_name, separator, attribute = reference.partition(":")
    if not (separator and module_name and attribute):
        raise PluginError(f"the factory {reference!r}{owner} is malformed: write 'module:attribute'")
    try:
        target: object = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise PluginError(f"cannot import the factory {reference!r}{owner}: {reason}") from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            hint = nearest(part, (name for name in vars(target) if not name.startswith("_")))
            raise PluginError(f"the factory {reference!r}{owner}: {module_name} has no {part!r}; {hint}")
        target = getattr(target, part)
    return target
