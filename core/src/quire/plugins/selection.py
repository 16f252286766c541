"""Which of the installed plugins take part: allow and deny lists, autoload, and doubled names."""

from __future__ import annotations

from collections.abc import Sequence

from quire.api.config import PluginSettings
from quire.plugins.discovery import Candidate


def disabled_reason(name: str, settings: PluginSettings) -> str | None:
    """Why the settings keep a plugin out; None when they let it in. Deny wins over allow."""
    if name in settings.deny:
        return "denied by plugins.deny"
    if settings.allow is not None:
        return None if name in settings.allow else "not named in plugins.allow"
    return None if settings.autoload else "plugins.autoload is off and plugins.allow does not name it"


def duplicate_reasons(candidates: Sequence[Candidate], settings: PluginSettings) -> dict[str, str]:
    """For every enabled name that two distributions claim: the message."""
    owners: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        if disabled_reason(candidate.name, settings) is None:
            owners.setdefault(candidate.name, []).append(candidate)
    return {
        name: f"two distributions bring a plugin of this name, {claims[0].origin} and {claims[1].origin}: "
        f"uninstall one of them"
        for name, claims in owners.items()
        if len(claims) > 1
    }
