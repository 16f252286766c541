"""Which of the installed plugins take part: allow and deny lists, autoload, and doubled names."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from quire.api.config import PluginSettings
from quire.api.errors import ConfigError, PluginError, QuireError
from quire.plugins.discovery import Candidate, canonical
from quire.plugins.registry import nearest

DISTRIBUTION_KIND = "plugin"
"""In `prefer`, the kind under which a plugin's name is given to one of two distributions."""


@dataclass(slots=True)
class Choice:
    """Installed plugins: those that take part, those that do not, and those that cannot, with the reason."""

    selected: list[Candidate] = field(default_factory=list)
    disabled: list[tuple[Candidate, str]] = field(default_factory=list)
    refused: list[tuple[Candidate, str]] = field(default_factory=list)


@dataclass(slots=True)
class Complaints:
    """Names in the settings that nothing answers to: those that matter, and those that do not."""

    errors: list[QuireError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def disabled_reason(name: str, settings: PluginSettings) -> str | None:
    """Why the settings keep a plugin out; None when they let it in. Deny wins over allow."""
    if name in settings.deny:
        return "denied by plugins.deny"
    if settings.allow is not None:
        return None if name in settings.allow else "not named in plugins.allow"
    return None if settings.autoload else "plugins.autoload is off and plugins.allow does not name it"


def choose(
    candidates: Sequence[Candidate], settings: PluginSettings, distributions: Mapping[str, str]
) -> Choice:
    """Divide the installed plugins.

    Args:
        candidates: what is installed.
        settings: allow, deny, autoload.
        distributions: for names that two distributions bring: the preferred one.
    """
    choice = Choice()
    claims: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        reason = disabled_reason(candidate.name, settings)
        if reason is not None:
            choice.disabled.append((candidate, reason))
        else:
            claims.setdefault(candidate.name, []).append(candidate)
    for name, rivals in claims.items():
        wanted = canonical(distributions.get(name, ""))
        preferred = [entry for entry in rivals if canonical(entry.distribution) == wanted]
        if len(rivals) == 1 or len(preferred) == 1:
            winner = (preferred or rivals)[0]
            choice.selected.append(winner)
            reason = f"not used: {winner.distribution} is preferred"
            choice.disabled += [(entry, reason) for entry in rivals if entry is not winner]
        else:
            choice.refused += [(entry, _doubled(name, rivals)) for entry in rivals]
    return choice


def check_names(
    settings: PluginSettings, candidates: Sequence[Candidate], enabled: Collection[str]
) -> Complaints:
    """Look for names of plugins in the settings that are not installed, or not enabled.

    Args:
        settings: all of them.
        candidates: all plugins.
        enabled: names of those that take part.
    """
    complaints = Complaints()
    names = {candidate.name for candidate in candidates}
    for name in settings.allow or ():
        if name not in names:
            message = f"the allowed plugin {name!r} is not installed: {nearest(name, names)}"
            if name in settings.optional:
                complaints.warnings.append(message)
            else:
                complaints.errors.append(PluginError(message))
    complaints.warnings += _vain_denials(settings, names, enabled)
    for place, name in _references(settings):
        if name in enabled:
            continue
        if name in names or name in settings.optional:
            complaints.warnings.append(f"{place} has no effect: the plugin {name!r} is not enabled")
        else:
            text = f"{place}: no plugin is called {name!r}: {nearest(name, names)}"
            complaints.errors.append(ConfigError(text))
    for key, distribution in settings.prefer.items():
        kind, _, name = key.partition(":")
        owners = {canonical(entry.distribution) for entry in candidates if entry.name == name}
        if kind.strip() == DISTRIBUTION_KIND and canonical(distribution) not in owners:
            text = f"{distribution} brings no plugin {name!r}: {nearest(canonical(distribution), owners)}"
            complaints.errors.append(ConfigError(f"plugins.prefer[{key!r}]: {text}"))
    return complaints


def _vain_denials(
    settings: PluginSettings, names: Collection[str], enabled: Collection[str]
) -> Iterator[str]:
    for name in settings.deny:
        if name not in names:
            yield f"the denied plugin {name!r} is not installed: {nearest(name, names)}"
        elif name in enabled:
            yield (
                f"plugins.deny has no effect on {name!r}: core's own plugins, and those that a program gives, "
                "are always loaded"
            )


def _references(settings: PluginSettings) -> Iterator[tuple[str, str]]:
    """Where the settings speak of a plugin, and its name."""
    for name in settings.options:
        yield f"[plugins.options.{name}]", name
    for name, order in settings.order.items():
        for other in (name, *order.before, *order.after):
            yield f"[plugins.order.{name}]", other
    for key, name in settings.prefer.items():
        if key.partition(":")[0].strip() != DISTRIBUTION_KIND:
            yield f"plugins.prefer[{key!r}]", name


def _doubled(name: str, rivals: Sequence[Candidate]) -> str:
    listed = " and ".join(rival.origin for rival in rivals)
    number = "two" if len(rivals) == 2 else str(len(rivals))
    return (
        f"{number} distributions bring a plugin of this name, {listed}: uninstall one of them, or prefer one "
        f'(`prefer = {{"plugin:{name}" = "{rivals[0].distribution}"}}` under [plugins] in quire.toml)'
    )
