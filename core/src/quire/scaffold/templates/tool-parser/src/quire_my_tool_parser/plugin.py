"""The plugin `my-tool-parser`: registers a parser of tool calls. Imports `quire.api` only."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import PluginInfo, ToolParserSpec


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """The range of hook API versions that this was written for."""
    return PluginInfo(api=">=1.3,<2", description="tool calls that are lines", affects_outputs=False)


@hookimpl
def quire_register_tool_parsers() -> list[ToolParserSpec]:
    """`quire serve MODEL --tool-call-parser my-tool-parser` selects it."""
    return [ToolParserSpec("my-tool-parser", "quire_my_tool_parser.parser:MyToolParser")]
