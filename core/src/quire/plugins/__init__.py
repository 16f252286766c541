"""Finding, checking and registering plugins. An engine owns its `PluginHost`; nothing here is global."""

from quire.plugins.capabilities import Combination
from quire.plugins.compatibility import HookAdapter, HookApi
from quire.plugins.discovery import Candidate, Discovery, DiscoveryProblem, discover_candidates
from quire.plugins.host import PluginHost
from quire.plugins.options import OptionText
from quire.plugins.record import PluginRecord, PluginStatus, UnusedRegistration
from quire.plugins.registry import Registry, resolve_factory

__all__ = [
    "Candidate",
    "Combination",
    "Discovery",
    "DiscoveryProblem",
    "HookAdapter",
    "HookApi",
    "OptionText",
    "PluginHost",
    "PluginRecord",
    "PluginStatus",
    "Registry",
    "UnusedRegistration",
    "discover_candidates",
    "resolve_factory",
]
