"""Registers the server, its clients and its parsers."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import CommandSpec, PluginInfo, ReasoningParserSpec, ToolParserSpec


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(
        api=">=1.3,<2",
        description="the OpenAI-compatible server, and commands that talk to one",
        options="quire_serving.settings:ServeSettings",
        affects_outputs=False,
    )


@hookimpl
def quire_register_commands() -> list[CommandSpec]:
    """See the hook specification."""
    return [
        CommandSpec(
            "serve",
            "serve a model behind an OpenAI-compatible endpoint",
            "quire_serving.cli.serve:ServeCommand",
            takes_tools=True,
        ),
        CommandSpec(
            "chat",
            "talk to a chat model: a server's, or with --model one in this process",
            "quire_serving.cli.chat:ChatCommand",
            takes_tools=True,
        ),
        CommandSpec(
            "complete",
            "let a model go on with texts, as chat does with messages",
            "quire_serving.cli.complete:CompleteCommand",
            takes_tools=True,
        ),
        CommandSpec(
            "run-batch",
            "answer the requests of an OpenAI batch file",
            "quire_serving.cli.run_batch:RunBatchCommand",
            takes_tools=True,
        ),
        CommandSpec(
            "bench",
            "measure latency, throughput, or a running server",
            "quire_serving.cli.bench.command:BenchCommand",
            takes_tools=True,
        ),
    ]


@hookimpl
def quire_register_tool_parsers() -> list[ToolParserSpec]:
    """See the hook specification."""
    return [
        ToolParserSpec("hermes", "quire_serving.parsers.tools:hermes"),
        ToolParserSpec("llama3_json", "quire_serving.parsers.tools:llama3_json"),
        ToolParserSpec("llama4_json", "quire_serving.parsers.tools:llama3_json"),
        ToolParserSpec("llama4_pythonic", "quire_serving.parsers.tools:llama4_pythonic"),
        ToolParserSpec("mistral", "quire_serving.parsers.tools:mistral"),
        ToolParserSpec("pythonic", "quire_serving.parsers.tools:pythonic"),
        ToolParserSpec("qwen3_coder", "quire_serving.parsers.tools:qwen3_coder"),
        ToolParserSpec("qwen3_xml", "quire_serving.parsers.tools:qwen3_coder"),
        ToolParserSpec("granite", "quire_serving.parsers.tools:granite"),
        ToolParserSpec("jamba", "quire_serving.parsers.tools:jamba"),
        ToolParserSpec("hunyuan_a13b", "quire_serving.parsers.tools:jamba"),
        ToolParserSpec("internlm", "quire_serving.parsers.tools:internlm"),
        ToolParserSpec("phi4_mini_json", "quire_serving.parsers.tools:phi4_mini_json"),
        ToolParserSpec("json", "quire_serving.parsers.tools:plain_json"),
    ]


@hookimpl
def quire_register_reasoning_parsers() -> list[ReasoningParserSpec]:
    """See the hook specification."""
    return [
        ReasoningParserSpec("deepseek_r1", "quire_serving.parsers.reasoning:deepseek_r1"),
        ReasoningParserSpec("qwen3", "quire_serving.parsers.reasoning:qwen3"),
    ]
