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
class UnusedRegistration:
    """Something that a plugin brought and that does not serve, and why."""

    entry: NamedRegistration
    reason: str


@dataclass(slots=True, frozen=True)
class PluginRecord:
    """One discovered plugin and what became of it.

    Attributes:
        reason: why it is disabled or failed; empty when enabled.
        info: what it says of itself; None unless it was imported.
        registered: what it brought and what serves; empty unless enabled.
        unused: what it brought and `prefer` gives to another plugin.
        hooks: the hooks that it implements.
        options: its validated options; None where it has none, or is not enabled.
        import_s: how long its module took to import.
        source: the file of its module; empty where unknown.
        error: the exception behind a failure.
    """

    candidate: Candidate
    status: PluginStatus
    reason: str = ""
    info: PluginInfo | None = None
    registered: tuple[NamedRegistration, ...] = ()
    unused: tuple[UnusedRegistration, ...] = ()
    hooks: tuple[str, ...] = ()
    options: object = None
    import_s: float = 0.0
    source: str = ""
    error: BaseException | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.candidate.name

    @property
    def is_enabled(self) -> bool:
        """Whether it takes part."""
        return self.status is PluginStatus.ENABLED

    @property
    def owner(self) -> str:
        """Plugin, distribution and version, for messages."""
        return f"plugin {self.name!r} ({self.candidate.origin})"

    def registered_names(self) -> dict[str, list[str]]:
        """Names by kind, for showing."""
        names: dict[str, list[str]] = {}
        for entry in self.registered:
            names.setdefault(entry.kind, []).append(entry.name)
        return names
