"""Installed plugins: what the metadata of distributions says, before anything is imported."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass

from quire.api.hookspecs import ENTRY_POINT_GROUP


@dataclass(slots=True, frozen=True)
class Candidate:
    """A plugin that could be loaded.

    Attributes:
        name: the entry point's name, which is the plugin's.
        target: the module to import.
        distribution, version: who ships it.
        location: the folder that holds the distribution's metadata; may be empty.
        plugin: the module or object itself, where a program passed it in.
    """

    name: str
    target: str
    distribution: str
    version: str
    location: str = ""
    plugin: object | None = None

    @property
    def origin(self) -> str:
        """Distribution and version, for messages."""
        return f"{self.distribution} {self.version}".strip()


@dataclass(slots=True, frozen=True)
class DiscoveryProblem:
    """Metadata that was passed over, and why."""

    distribution: str
    location: str
    reason: str


@dataclass(slots=True, frozen=True)
class Discovery:
    """What is installed: plugins by name, and metadata that could not be used."""

    candidates: tuple[Candidate, ...]
    problems: tuple[DiscoveryProblem, ...]


def canonical(distribution: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def discover_candidates() -> Discovery:
    """Read the entry points of every installed distribution; imports no plugin and never raises.

    Python's path decides between two folders of metadata for one distribution, as it does for
    imports: the first is taken and the others are reported as shadowed.
    """
    candidates: list[Candidate] = []
    problems: list[DiscoveryProblem] = []
    seen: dict[str, str] = {}
    for dist in importlib.metadata.distributions():
        location = _location(dist)
        try:
            found = list(_candidates_of(dist, location))
        except Exception as error:
            problems.append(DiscoveryProblem(location or "?", location, f"unreadable metadata: {error}"))
            continue
        if not found:
            continue
        key = canonical(found[0].distribution)
        if key in seen:
            reason = f"shadowed by the metadata in {seen[key] or 'an earlier folder'}; uninstall one of them"
            problems.append(DiscoveryProblem(found[0].distribution, location, reason))
            continue
        seen[key] = location
        candidates.extend(found)
    candidates.sort(key=lambda candidate: (candidate.name, candidate.distribution))
    return Discovery(tuple(candidates), tuple(problems))


def _candidates_of(dist: importlib.metadata.Distribution, location: str) -> Iterator[Candidate]:
    # Reading the text first spares the parsing of every distribution that has no such group.
    text = dist.read_text("entry_points.txt")
    if text is None or f"[{ENTRY_POINT_GROUP}]" not in text:
        return
    metadata = dist.metadata
    name, version = metadata["Name"], metadata["Version"]
    if not name or not version:
        raise ValueError("the metadata has no Name or no Version: reinstall or remove this distribution")
    for entry in dist.entry_points:
        if entry.group == ENTRY_POINT_GROUP:
            yield Candidate(entry.name, entry.value, name, version, location)


def _location(dist: importlib.metadata.Distribution) -> str:
    path = getattr(dist, "_path", None)  # the folder has no public name in Python 3.11
    return str(path) if path is not None else ""
