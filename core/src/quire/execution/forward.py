"""A model's pass over a batch: call by call, or as it was recorded."""

from __future__ import annotations

from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.protocols import CapturedSteps, Model
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


def run_head(model: Model, hidden: Tensor, batch: ForwardBatch) -> Tensor:
    """The logits [L, V] of `batch.logits_rows` of the hidden states [T, E]."""
    return model.logits(model.finish(hidden[batch.logits_rows]))


class ModelPass:
    """A model's pass over batches. Results are valid until the next pass.

    Attributes:
        captured: recorded steps, replayed where they serve; None: there are none.
    """

    def __init__(self, model: Model, captured: CapturedSteps | None = None) -> None:
        self._model = model
        self.captured = captured

    def layers(self, batch: ForwardBatch) -> Tensor:
        """See `run_layers`."""
        hidden = None if self.captured is None else self.captured.layers(batch)
        return run_layers(self._model, batch) if hidden is None else hidden

    def logits(self, hidden: Tensor, batch: ForwardBatch) -> Tensor:
        """See `run_head`."""
        logits = None if self.captured is None else self.captured.logits(hidden, batch)
        PROGRESS.count += 1
        return run_head(self._model, hidden, batch) if logits is None else logits
