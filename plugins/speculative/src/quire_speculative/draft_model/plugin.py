"""Registers the drafter `draft-model`."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import DrafterSpec, PluginInfo


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(
        api=">=1.2,<2", description="drafts what a small model of the same vocabulary would generate"
    )


@hookimpl
def quire_register_drafters() -> list[DrafterSpec]:
    """See the hook specification."""
    return [
        DrafterSpec(
            name="draft-model",
            factory="quire_speculative.draft_model.drafter:make_draft_model",
            settings="quire_speculative.draft_model.settings:DraftModelSettings",
        )
    ]
