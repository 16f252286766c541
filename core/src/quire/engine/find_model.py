"""Finds a model's folder the way the engine does, without building one."""

from __future__ import annotations

from pathlib import Path

from quire.api.config import EngineConfig
from quire.loading.resolve import resolve_model_folder
from quire.plugins import PluginHost


def find_model(model: str | Path, revision: str | None = None) -> Path:
    """The folder that holds a model's files: itself, what a plugin resolves, or a download from the hub.

    Args:
        model: a folder, a name that a plugin resolves ("tiny"), or a hub id.
        revision: branch, tag or commit of a hub id.

    Raises:
        ModelNotFoundError: nothing answers to the name.
        PluginError: a plugin cannot be loaded.
    """
    config = EngineConfig.from_keywords({"model": model, "revision": revision})
    host = PluginHost.discover(config.plugins)
    return resolve_model_folder(config.model.model, revision, host.resolve_model)
