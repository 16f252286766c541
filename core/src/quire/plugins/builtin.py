"""Core's own plugin: it goes through the same hooks as everyone's and is always loaded first."""

from __future__ import annotations

import importlib.metadata

from quire.api.batch import DeviceInfo, DTypeName
from quire.api.hookspecs import hookimpl
from quire.api.specs import (
    AttentionBackendSpec,
    CommandSpec,
    OpImplSpec,
    OpSpec,
    PluginInfo,
    PolicySpec,
    StepCaptureSpec,
)
from quire.ops.specs import core_attention_backend_specs, core_op_specs
from quire.plugins.discovery import Candidate

BUILTIN_PLUGINS = (("core", "quire.plugins.builtin"),)
"""Name and module of each plugin that core brings itself."""


def core_version() -> str:
    """The installed version of quire-core."""
    try:
        return importlib.metadata.version("quire-core")
    except importlib.metadata.PackageNotFoundError:
        return "0+uninstalled"


def builtin_candidates() -> list[Candidate]:
    """The plugins that core brings itself; no setting turns them off."""
    version = core_version()
    return [Candidate(name, target, "quire-core", version) for name, target in BUILTIN_PLUGINS]


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """Core, as a plugin."""
    return PluginInfo(api=">=1,<2", description="the core's own ops, attention backend and commands")


@hookimpl
def quire_register_ops() -> list[OpSpec | OpImplSpec]:
    """Core's ops, each with its plain-torch reference."""
    return [*core_op_specs()]


@hookimpl
def quire_register_attention_backends() -> list[AttentionBackendSpec]:
    """The reference attention backend."""
    return core_attention_backend_specs()


@hookimpl
def quire_register_step_captures() -> list[StepCaptureSpec]:
    """Steps of decodes as graphs of the device."""
    return [StepCaptureSpec("cuda-graphs", "quire.execution.graphs:CudaGraphCapture", _graphs_refusal)]


@hookimpl
def quire_register_policies() -> list[PolicySpec]:
    """First come first served, and by priority."""
    return [
        PolicySpec("fcfs", "quire.scheduling.policies:create_fcfs"),
        PolicySpec("priority", "quire.scheduling.policies:create_priority"),
    ]


@hookimpl
def quire_register_commands() -> list[CommandSpec]:
    """The commands of core."""
    return [
        CommandSpec("generate", "answer prompts and exit", "quire.cli.generate:GenerateCommand"),
        CommandSpec(
            "completion", "print a script of completion for a shell", "quire.cli.completion:CompletionCommand"
        ),
        CommandSpec("plugins", "show the installed plugins", "quire.cli.plugins:PluginsCommand"),
        CommandSpec(
            "collect-env", "show versions, machine and plugins", "quire.cli.collect_env:CollectEnvCommand"
        ),
    ]


def _graphs_refusal(device: DeviceInfo, dtype: DTypeName) -> str | None:
    return None if device.type == "cuda" else f"needs a CUDA or ROCm device, not {device.type}"
