"""Writes new plugin distributions from templates, for `quire plugins new`. Imports no torch."""

from quire.scaffold.kinds import KINDS, ScaffoldKind
from quire.scaffold.names import ScaffoldNames, derive_names
from quire.scaffold.render import render_distribution, write_distribution

__all__ = [
    "KINDS",
    "ScaffoldKind",
    "ScaffoldNames",
    "derive_names",
    "render_distribution",
    "write_distribution",
]
