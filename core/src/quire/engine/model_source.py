"""Which model a folder holds and which plugin serves it, before anything of its weights is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from quire.api.config import EngineConfig
from quire.api.errors import PluginError, QuireError, UnsupportedModelError
from quire.api.protocols import ModelConfig, ModelFactory
from quire.loading.hf_config import architectures_of, read_hf_config
from quire.loading.resolve import resolve_model_folder
from quire.plugins import PluginHost, resolve_factory
from quire.plugins.registry import describe_origin


@dataclass(slots=True, frozen=True)
class ModelSource:
    """A model folder, read and understood; nothing of its weights is loaded yet.

    Attributes:
        origin: the architecture and who serves it, for messages.
    """

    folder: Path
    hf_config: Mapping[str, object]
    architecture: str
    origin: str
    factory: ModelFactory
    config: ModelConfig


def read_model(config: EngineConfig, host: PluginHost) -> ModelSource:
    """Find the model's folder and the plugin that serves its architecture.

    Raises:
        QuireError: there is no such folder, no plugin serves it, or the plugin fails; it is named.
    """
    return read_model_folder(
        resolve_model_folder(config.model.model, config.model.revision, host.resolve_model), host
    )


def read_model_folder(folder: Path, host: PluginHost) -> ModelSource:
    """Read a model's folder, and find the plugin that serves its architecture.

    Raises:
        QuireError: no plugin serves it, or the plugin fails; it is named.
    """
    hf_config = read_hf_config(folder)
    architecture = _served(hf_config, host)
    entry = host.models.registration(architecture)
    origin = f"the model {architecture!r} of {describe_origin(entry)}"
    factory = resolve_factory(host.models.spec(architecture).factory, entry)
    for method in ("parse_config", "weight_map", "__call__"):
        if not callable(getattr(factory, method, None)):
            raise PluginError(f"{origin}: its factory {factory!r} has no {method}(), see ModelFactory")
    model_factory = cast(ModelFactory, factory)
    with naming(f"{origin}: parse_config"):
        model_config = model_factory.parse_config(hf_config)
    if not isinstance(model_config, ModelConfig):
        raise PluginError(f"{origin}: parse_config returned {model_config!r}, expected a ModelConfig")
    return ModelSource(folder, hf_config, architecture, origin, model_factory, model_config)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Turn what a plugin's code raises into a PluginError that says whose it is; our own errors stay."""
    try:
        yield
    except QuireError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"{what} failed: {type(error).__name__}: {error}") from error


def _served(hf_config: Mapping[str, object], host: PluginHost) -> str:
    architectures = architectures_of(hf_config)
    for name in architectures:
        if name in host.models:
            return name
    known = ", ".join(host.models) or "none"
    off = [f"{entry.name} ({entry.reason})" for entry in host.records if not entry.is_enabled]
    hint = f". Installed and off: {', '.join(off)}" if off else ""
    raise UnsupportedModelError(
        f"architecture {', '.join(architectures)} is served by no plugin; registered are {known}. "
        f"Install or enable a plugin for it, or register one with quire_register_models{hint}"
    )
