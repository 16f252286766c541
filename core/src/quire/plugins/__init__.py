"""Finding, checking and registering plugins. An engine owns its `PluginHost`; nothing here is global."""

from quire.plugins.discovery import Candidate, Discovery, DiscoveryProblem, discover_candidates
from quire.plugins.host import PluginHost
from quire.plugins.record import PluginRecord, PluginStatus
from quire.plugins.registry import Registry, resolve_factory

__all__ = [
    "Candidate",
    "Discovery",
    "DiscoveryProblem",
    "PluginHost",
    "PluginRecord",
    "PluginStatus",
    "Registry",
    "discover_candidates",
    "resolve_factory",
]
