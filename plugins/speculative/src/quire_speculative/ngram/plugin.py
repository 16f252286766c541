"""Registers the drafter `ngram`."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import DrafterSpec, PluginInfo


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(
        api=">=1.2,<2", description="drafts what followed the latest tokens where they occurred before"
    )


@hookimpl
def quire_register_drafters() -> list[DrafterSpec]:
    """See the hook specification."""
    return [
        DrafterSpec(
            name="ngram",
            factory="quire_speculative.ngram.drafter:make_ngram",
            settings="quire_speculative.ngram.settings:NgramSettings",
        )
    ]
