"""What the host knows of one plugin."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from quire.api.specs import PluginInfo, Registration
from quire.plugins.discovery import Candidate


class PluginStatus(Enum):
    """Whether a plugin takes part."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    FAILED = "failed"


@dataclass(slots=True, frozen=True)
class NamedRegistration:
    """A registration under its kind and name."""

    kind: str
    name: str
    registration: Registration


@dataclass(slots=True, frozen=True)
class PluginRecord:
    """One discovered plugin and what became of it.

    Attributes:
        reason: why it is disabled or failed; empty when enabled.
        info: what it says of itself; None unless it was imported.
        registered: what it brought; empty unless enabled.
        error: the exception behind a failure.
    """

    candidate: Candidate
    status: PluginStatus
    reason: str = ""
    info: PluginInfo | None = None
    registered: tuple[NamedRegistration, ...] = ()
    error: BaseException | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.candidate.name

    @property
    def is_enabled(self) -> bool:
        """Whether it takes part."""
        return self.status is PluginStatus.ENABLED

    def registered_names(self) -> dict[str, list[str]]:
        """Names by kind, for showing."""
        names: dict[str, list[str]] = {}
        for entry in self.registered:
            names.setdefault(entry.kind, []).append(entry.name)
        return names
