"""What plugins register: data, with factories named as "module:attribute" and imported late."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from quire.api.batch import DeviceInfo, DTypeName

FactoryRef = str | Callable[..., object]
"""A "module:attribute" string, imported when first used, or the callable itself."""


@dataclass(slots=True, frozen=True)
class PluginInfo:
    """A plugin about itself.

    Attributes:
        api: the range of hook API versions that it was written for, e.g. ">=1,<2".
        description: one line for `quire plugins list`.
    """

    api: str
    description: str = ""


@dataclass(slots=True, frozen=True)
class ModelSpec:
    """A model architecture.

    Attributes:
        architecture: as in config.json's `architectures`, e.g. "LlamaForCausalLM".
        factory: a ModelFactory (see `quire.api.protocols`).
    """

    architecture: str
    factory: FactoryRef


@dataclass(slots=True, frozen=True)
class OpSpec:
    """An op: a named function with a plain-torch reference.

    Attributes:
        schema: a torch.library schema without the name, e.g. "(Tensor x, Tensor weight, float eps) -> Tensor".
    """

    name: str
    schema: str
    reference: FactoryRef


@dataclass(slots=True, frozen=True)
class OpImplSpec:
    """An implementation of an op, chosen where `supports(device, dtype)` is true.

    Attributes:
        op: the OpSpec's name. name: of this implementation, unique per op.
        priority: the highest supported one is bound; references have 0.
        supports: returns None when supported, else the reason why not (shown by `quire plugins ops`).
    """

    op: str
    name: str
    factory: FactoryRef
    supports: Callable[[DeviceInfo, DTypeName], str | None]
    priority: int = 10


@dataclass(slots=True, frozen=True)
class AttentionBackendSpec:
    """An attention backend; chosen like an op implementation, overridable by `attention_backend`.

    Attributes:
        factory: called without arguments, gives an AttentionBackend.
    """

    name: str
    factory: FactoryRef
    supports: Callable[[DeviceInfo, DTypeName], str | None]
    priority: int = 10


@dataclass(slots=True, frozen=True)
class CommandSpec:
    """A CLI command `quire NAME`; the factory, called without arguments, gives a Command."""

    name: str
    help: str
    factory: FactoryRef


@dataclass(slots=True, frozen=True)
class WeightPart:
    """One part of a linear (or a plain module) and the checkpoint module that fills it.

    Attributes:
        source: the checkpoint's module name; "{i}" stands for the layer index.
        part: name of the linear's part; None where the module is not a linear of several parts.
        transposed: the checkpoint stores [in, out] (GPT-2's Conv1D).
        row_permutation: None, or for each output row of the part the row of the checkpoint it is
            taken from (interleaved QKV, rope pairings). May select a subset: several parts can
            share one source.
    """

    source: str
    part: str | None = None
    transposed: bool = False
    row_permutation: tuple[int, ...] | None = None


@dataclass(slots=True, frozen=True)
class WeightMap:
    """Where a checkpoint's modules go.

    Attributes:
        modules: the model's module path ("layers.{i}.attention.qkv") to its parts.
        num_layers: what "{i}" runs over.
        ignored: regular expressions (full match) of checkpoint tensors that carry nothing.
        prefixes: alternative prefixes that checkpoints put before (or leave out of) names, tried
            in turn, e.g. ("", "transformer.").
    """

    modules: Mapping[str, tuple[WeightPart, ...]]
    num_layers: int
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)


ShardDim = Literal["rows", "columns"]


@dataclass(slots=True, frozen=True)
class Registration:
    """A registered spec and who brought it."""

    spec: object
    plugin: str
    distribution: str
    version: str
    labels: Mapping[str, str] = field(default_factory=dict)
