"""The plugin `my-reasoning-parser`: registers a parser of reasoning. Imports `quire.api` only."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import PluginInfo, ReasoningParserSpec


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """The range of hook API versions that this was written for."""
    return PluginInfo(api=">=1.3,<2", description="reasoning between two marks", affects_outputs=False)


@hookimpl
def quire_register_reasoning_parsers() -> list[ReasoningParserSpec]:
    """`quire serve MODEL --reasoning-parser my-reasoning-parser` selects it."""
    return [ReasoningParserSpec("my-reasoning-parser", "quire_my_reasoning_parser.parser:MyReasoningParser")]
