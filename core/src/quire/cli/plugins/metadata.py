"""What the metadata of installed distributions has wrong: clashing versions, doubles, leftovers."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Iterator, Sequence

from quire.api.hookspecs import ENTRY_POINT_GROUP
from quire.api.specs import PluginInfo
from quire.cli.plugins.modules import find_module
from quire.plugins import PluginHost, PluginRecord, PluginStatus
from quire.plugins.discovery import canonical

CORE = "quire-core"
META = "quire"
"""The distribution that has no code, and only requires the others."""


def plugin_distributions(host: PluginHost) -> list[str]:
    """The distributions that bring plugins, core first, each once."""
    names = [CORE, *(record.candidate.distribution for record in host.records if record.candidate.location)]
    return list(dict.fromkeys(canonical(name) for name in names))


def version_clashes(names: Iterable[str]) -> Iterator[str]:
    """Requirements of these distributions that what is installed does not meet."""
    for name in names:
        try:
            dist = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for text in dist.requires or ():
            problem = _unmet(text)
            if problem:
                yield f"{dist.metadata['Name']} {dist.version} requires {text}: {problem}"


def doubled_metadata(names: Sequence[str], reported: Iterable[str]) -> Iterator[str]:
    """Distributions with more than one folder of metadata, except those that were `reported` already."""
    wanted = set(names) - {canonical(name) for name in reported}
    found: dict[str, list[str]] = {}
    for dist in importlib.metadata.distributions():
        name = canonical(dist.metadata["Name"] or "")
        if name in wanted:
            place = f"{dist.version} in {getattr(dist, '_path', '?')}"
            if place not in found.setdefault(name, []):
                found[name].append(place)
    for name, places in found.items():
        if len(places) > 1:
            yield f"{name} is installed {len(places)} times ({', '.join(places)}): uninstall all, install one"


def overlooked_plugins(names: Sequence[str]) -> Iterator[str]:
    """Distributions that seem meant to bring plugins and bring none: nothing else would speak of them.

    Args:
        names: the distributions that do bring plugins.
    """
    for dist in importlib.metadata.distributions():
        name = canonical(dist.metadata["Name"] or "")
        if not name or name == META or name in names:
            continue
        groups = sorted({entry.group for entry in dist.entry_points if _resembles(entry.group)})
        if groups:
            yield (
                f"{name} {dist.version} has entry points under {', '.join(groups)}, and brings no plugin: Quire "
                f"reads the group {ENTRY_POINT_GROUP!r}; name it so in its pyproject.toml and install it again"
            )
        elif any(_names_core(text) for text in dist.requires or ()):
            yield (
                f"{name} {dist.version} requires {CORE} and brings no plugin; where it should, its metadata in "
                f"{getattr(dist, '_path', '?')} is stale: install it again"
            )


def stale_entry_points(records: Iterable[PluginRecord]) -> Iterator[str]:
    """Plugins that are off, and whose module is gone; those that are on fail to load, which says it."""
    for record in records:
        module = record.candidate.target.partition(":")[0]
        if record.status is PluginStatus.DISABLED and module and find_module(module) is None:
            yield (
                f"plugin {record.name!r} ({record.candidate.origin}, off): its module {module!r} does not exist; "
                f"the metadata in {record.candidate.location} is stale: reinstall or uninstall "
                f"{record.candidate.distribution}"
            )


def doubled_names(records: Iterable[PluginRecord]) -> Iterator[str]:
    """Names that several entry points claim, where that is not an error already."""
    owners: dict[str, list[PluginRecord]] = {}
    for record in records:
        owners.setdefault(record.name, []).append(record)
    for name, claims in owners.items():
        if len(claims) > 1 and not any(claim.status is PluginStatus.FAILED for claim in claims):
            listed = ", ".join(f"{claim.candidate.origin} ({claim.status.value})" for claim in claims)
            yield f"the plugin name {name!r} is claimed by {listed}: uninstall one of them"


def api_range(info: PluginInfo | None) -> str:
    """The hook API range that a plugin states; "?" where it was not imported."""
    return info.api if info is not None else "?"


def _resembles(group: str) -> bool:
    return canonical(group).startswith(ENTRY_POINT_GROUP)


def _names_core(requirement: str) -> bool:
    return re.match(r"quire[-_.]core\b", requirement, re.IGNORECASE) is not None


def _unmet(text: str) -> str | None:
    """Why a requirement is not met; None when it is, or does not concern this environment."""
    # Imported late: `quire plugins list` shares this package and has no use for them.
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.version import InvalidVersion, Version

    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        return f"this is no valid requirement ({error})"
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return None
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"it is not installed; run `pip install '{requirement}'`"
    try:
        is_met = requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return f"{version} is installed, which is no valid version"
    return None if is_met else f"{version} is installed; run `pip install '{requirement}'`"
