"""The hooks of Quire's plugin API. Hooks return data; none is called inside a step."""

from __future__ import annotations

from pathlib import Path

import pluggy

from quire.api.specs import (
    AttentionBackendSpec,
    CommandSpec,
    ModelSpec,
    OpImplSpec,
    OpSpec,
    PluginInfo,
)

PROJECT_NAME = "quire"
ENTRY_POINT_GROUP = "quire"
HOOK_API_VERSION = (1, 0)

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@hookspec
def quire_plugin_info() -> PluginInfo:  # type: ignore[empty-body]  # a hookspec has no body
    """Say what this plugin is. Called once, when it is loaded; required of every plugin."""


@hookspec
def quire_register_models() -> list[ModelSpec]:  # type: ignore[empty-body]
    """Register model architectures. Called once, at load."""


@hookspec
def quire_register_ops() -> list[OpSpec | OpImplSpec]:  # type: ignore[empty-body]
    """Register ops and implementations of ops. Called once, at load."""


@hookspec
def quire_register_attention_backends() -> list[AttentionBackendSpec]:  # type: ignore[empty-body]
    """Register attention backends. Called once, at load."""


@hookspec
def quire_register_commands() -> list[CommandSpec]:  # type: ignore[empty-body]
    """Register CLI commands. Called once, at load."""


@hookspec(firstresult=True)
def quire_resolve_model(name: str) -> Path | None:
    """Turn a model's name into a local folder, or None to let the next plugin try.

    Called when a model's name is not an existing folder; core's hub download comes last.
    """
