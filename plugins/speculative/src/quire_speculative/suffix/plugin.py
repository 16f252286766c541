"""Registers the drafter `suffix`."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import DrafterSpec, PluginInfo


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(
        api=">=1.2,<2",
        description="drafts the most frequent continuation, from the request and from earlier outputs",
    )


@hookimpl
def quire_register_drafters() -> list[DrafterSpec]:
    """See the hook specification."""
    return [
        DrafterSpec(
            name="suffix",
            factory="quire_speculative.suffix.drafter:make_suffix",
            settings="quire_speculative.suffix.settings:SuffixSettings",
        )
    ]
