"""The order in which plugins are loaded: by name, save where `before` and `after` ask otherwise."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quire.api.config import PluginSettings
from quire.api.specs import PluginInfo


@dataclass(slots=True, frozen=True)
class Constraint:
    """`first` is loaded before `second`, because `source` says so."""

    first: str
    second: str
    source: str


def constraints_of(infos: Mapping[str, PluginInfo], settings: PluginSettings) -> list[Constraint]:
    """What plugins say of themselves and the settings of them; names that are not there drop out."""
    wanted: list[Constraint] = []
    for name, info in infos.items():
        wanted += [Constraint(name, other, f"{name} says before {other}") for other in info.before]
        wanted += [Constraint(other, name, f"{name} says after {other}") for other in info.after]
    for name, order in settings.order.items():
        where = f"[plugins.order.{name}] says"
        wanted += [Constraint(name, other, f"{where} before {other}") for other in order.before]
        wanted += [Constraint(other, name, f"{where} after {other}") for other in order.after]
    return [entry for entry in wanted if entry.first in infos and entry.second in infos]


def sort_plugins(names: Sequence[str], constraints: Sequence[Constraint]) -> list[str]:
    """The names in load order: topological, and of those that are free the earliest of `names` first.

    Names on a cycle, or behind one, are left out.
    """
    rank = {name: index for index, name in enumerate(names)}
    waits: dict[str, set[str]] = {name: set() for name in names}
    for entry in constraints:
        waits[entry.second].add(entry.first)
    free = [rank[name] for name in names if not waits[name]]
    heapq.heapify(free)
    ordered: list[str] = []
    while free:
        name = names[heapq.heappop(free)]
        ordered.append(name)
        for other, before in waits.items():
            if name in before:
                before.remove(name)
                if not before:
                    heapq.heappush(free, rank[other])
    return ordered


def find_cycle(names: Sequence[str], constraints: Sequence[Constraint]) -> list[Constraint]:
    """One whole cycle, from the earliest of `names` that is on one; empty where there is none."""
    after: dict[str, list[Constraint]] = {name: [] for name in names}
    for entry in constraints:
        after[entry.first].append(entry)
    for start in names:
        cycle = _path(start, start, after)
        if cycle:
            return cycle
    return []


def describe_cycle(cycle: Sequence[Constraint]) -> str:
    """The cycle in full, with who asks for each step of it."""
    names = " -> ".join([*(entry.first for entry in cycle), cycle[0].first])
    return f"the load order has a cycle, {names}: {'; '.join(entry.source for entry in cycle)}"


def _path(start: str, goal: str, after: Mapping[str, Sequence[Constraint]]) -> list[Constraint]:
    """The shortest way from `start` to `goal` along the constraints, of at least one step."""
    reached: dict[str, list[Constraint]] = {start: []}
    queue = [start]
    for name in queue:
        for entry in after[name]:
            way = [*reached[name], entry]
            if entry.second == goal:
                return way
            if entry.second not in reached:
                reached[entry.second] = way
                queue.append(entry.second)
    return []
