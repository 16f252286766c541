"""A model's pass over a batch."""

from __future__ import annotations

from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.protocols import Model
from quire.execution.progress import PROGRESS


def run_layers(model: Model, batch: ForwardBatch) -> Tensor:
    """The hidden states after the last layer, [T, E]; writes the batch's KV.

    Args:
        model: with its KV caches bound.
        batch: prepared by the model's attention backend.
    """
    hidden = model.embed(batch)
    for layer in model.layers:
        hidden = layer(hidden, batch)
        PROGRESS.count += 1
    return hidden
