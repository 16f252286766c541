"""Where a checkpoint's tensors go in a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
