"""Two plugins that claim one name: an error that names both, unless the settings prefer one of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from quire.api.errors import ConfigError
from quire.plugins.collect import SPEC_KINDS
from quire.plugins.record import NamedRegistration, UnusedRegistration
from quire.plugins.registry import collision_message, nearest
from quire.plugins.selection import DISTRIBUTION_KIND

Key = tuple[str, str]
"""A kind of spec and a name, unique together."""


@dataclass(slots=True, frozen=True)
class Preferences:
    """The settings' `prefer`, read: what several plugins register, and which one serves it."""

    plugins: Mapping[Key, str]
    distributions: Mapping[str, str]

    @classmethod
    def read(cls, prefer: Mapping[str, str]) -> Preferences:
        """Parse the keys "kind:name"; in the kind, "-" and "_" stand for a space.

        Raises:
            ConfigError: a key has no name, or a kind that there is not.
        """
        kinds = [DISTRIBUTION_KIND, *(entry.kind for entry in SPEC_KINDS.values())]
        plugins: dict[Key, str] = {}
        distributions: dict[str, str] = {}
        for text, owner in prefer.items():
            kind, _, name = text.partition(":")
            kind = kind.strip().replace("-", " ").replace("_", " ")
            if not name or kind not in kinds:
                hint = nearest(kind, kinds) if name else "write 'kind:name'"
                raise ConfigError(f"plugins.prefer[{text!r}] names no kind of thing: {hint}")
            if kind == DISTRIBUTION_KIND:
                distributions[name] = owner
            else:
                plugins[kind, name] = owner
        return cls(plugins, distributions)


@dataclass(slots=True)
class Settlement:
    """Who serves what.

    Attributes:
        used, unused: by plugin, what it brought.
        refused: plugins that collide and are not preferred, with the message.
    """

    used: dict[str, list[NamedRegistration]] = field(default_factory=dict)
    unused: dict[str, list[UnusedRegistration]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def settle(
    brought: Mapping[str, Sequence[NamedRegistration]],
    preferences: Preferences,
    optional: Collection[str] = (),
) -> Settlement:
    """Decide each name that several plugins claim.

    Of two that collide, an optional plugin is refused before one that is not, else the later one;
    what a refused plugin brought counts no more.

    Args:
        brought: by plugin, in load order.
        preferences: which plugin serves a name.
        optional: plugins without which the engine may start.
    """
    settlement = Settlement()
    active = dict(brought)
    while True:
        refusal = _first_collision(active, preferences, optional)
        if refusal is None:
            break
        plugin, message = refusal
        settlement.refused[plugin] = message
        del active[plugin]
    claims = _claims(active)
    for plugin, entries in active.items():
        used = settlement.used[plugin] = []
        for entry in entries:
            winner = _winner(claims, entry, preferences)
            if winner == plugin:
                used.append(entry)
            else:
                reason = f"not used: {winner} is preferred"
                settlement.unused.setdefault(plugin, []).append(UnusedRegistration(entry, reason))
    return settlement


def _claims(brought: Mapping[str, Sequence[NamedRegistration]]) -> dict[Key, list[NamedRegistration]]:
    claims: dict[Key, list[NamedRegistration]] = {}
    for entries in brought.values():
        for entry in entries:
            claims.setdefault((entry.kind, entry.name), []).append(entry)
    return claims


def _winner(
    claims: Mapping[Key, Sequence[NamedRegistration]], entry: NamedRegistration, preferences: Preferences
) -> str:
    key = (entry.kind, entry.name)
    owners = [claim.registration.plugin for claim in claims[key]]
    preferred = preferences.plugins.get(key)
    return preferred if preferred in owners else owners[0]


def _first_collision(
    brought: Mapping[str, Sequence[NamedRegistration]], preferences: Preferences, optional: Collection[str]
) -> tuple[str, str] | None:
    """The plugin to refuse and why; None where nothing is claimed twice."""
    for (kind, name), claims in _claims(brought).items():
        owners = [claim.registration.plugin for claim in claims]
        doubled = next((owner for owner in owners if owners.count(owner) > 1), None)
        if doubled is None and (len(owners) < 2 or preferences.plugins.get((kind, name)) in owners):
            continue
        first, second = claims[0].registration, claims[1].registration
        if doubled is not None:
            first = second = next(
                claim for claim in claims if claim.registration.plugin == doubled
            ).registration
        loser = doubled or (first.plugin if first.plugin in optional else second.plugin)
        if second.plugin in optional:
            loser = second.plugin
        return loser, collision_message(kind, name, first, second)
    return None
