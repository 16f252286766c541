"""Builds a model and fills it from its folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import nn

from quire.api.errors import CapacityError, QuireError
from quire.api.extensions import CheckpointReader
from quire.api.specs import WeightMap
from quire.engine.model_source import ModelSource, naming
from quire.engine.quantization import ChosenQuantization
from quire.execution.model_builder import BuildSettings, BuiltModel, build_model
from quire.loading.checkpoint import open_checkpoint
from quire.loading.linear_assignment import AssignedModule, LinearAssignment
from quire.loading.reader_checkpoint import ReaderCheckpoint
from quire.loading.tensor_copy import TensorSource
from quire.loading.weight_map import load_weights
from quire.nn.attention import Attention
from quire.plugins import PluginHost
from quire.plugins.capabilities import Combination


@dataclass(slots=True, frozen=True)
class ModelFiles:
    """A model's folder, and what is known of it before its weights are read.

    Attributes:
        reader: a plugin's, of its checkpoint; None: core reads safetensors.
        quantization: of its linears; None: they stay in 16 bits.
    """

    source: ModelSource
    reader: CheckpointReader | None
    quantization: ChosenQuantization | None


@dataclass(slots=True, frozen=True)
class LoadedModel:
    """A model with its weights.

    Attributes:
        combination: with what the layers told.
        modules: how each module is kept, where the checkpoint is quantized.
    """

    built: BuiltModel
    combination: Combination
    modules: list[AssignedModule]


def load_model(
    host: PluginHost, files: ModelFiles, settings: BuildSettings, combination: Combination
) -> LoadedModel:
    """Build a model and read its weights.

    Raises:
        QuireError: the checkpoint does not fit, memory is short, or a plugin failed; it is named.
    """
    source = files.source
    if files.reader is None:
        checkpoint: TensorSource = open_checkpoint(source.folder)
    else:
        checkpoint = ReaderCheckpoint(source.folder, files.reader)
    loader = _WeightLoader(host, combination, checkpoint)
    modules: list[AssignedModule] = []
    if files.quantization is not None:
        assignment = LinearAssignment(files.quantization.method, checkpoint)
        modules = assignment.modules
        settings = replace(settings, assign_linears=assignment)
    with naming(source.origin), allocating(f"the model in {source.folder}"):
        built = build_model(source.factory, source.config, settings, loader)
    return LoadedModel(built, loader.combination, modules)


class _WeightLoader:
    """Fills a built model, after a last look at what only its layers tell.

    Attributes:
        combination: with what the layers told.
    """

    def __init__(self, host: PluginHost, combination: Combination, checkpoint: TensorSource) -> None:
        self._host = host
        self.combination = combination
        self._checkpoint = checkpoint

    def __call__(self, model: nn.Module, weight_map: WeightMap) -> None:
        layers = [module for module in model.modules() if isinstance(module, Attention)]
        if any(layer.params.window is not None for layer in layers):
            self.combination = replace(self.combination, has_sliding_windows=True)
            self._host.check_capabilities(self.combination)
        load_weights(model, weight_map, self._checkpoint)


@contextmanager
def allocating(what: str) -> Iterator[None]:
    """Turn a failed allocation, whoever reports it, into a CapacityError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, QuireError) or not _is_about_memory(error):
            raise
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CapacityError(
            f"{what} could not be allocated: {text}. Check the sizes in config.json, or lower max_model_len, "
            "max_num_seqs, max_num_batched_tokens or kv_cache_memory_bytes"
        ) from error


def _is_about_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether an allocation failed, and not a model's own code: torch raises RuntimeError for both."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(word in text for word in ("memory", "alloc", "overflow"))
