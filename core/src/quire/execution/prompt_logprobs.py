"""Log-probabilities of prompts' tokens, chunk by chunk."""

from __future__ import annotations

from torch import Tensor

from quire.api.errors import NumericalError
from quire.api.protocols import Model
from quire.api.step import PlanRow, RowResult, SlotAssignment
from quire.execution.batch_builder import BatchBuilder
from quire.execution.logprobs import prompt_logprobs


class PromptLogprobs:
    """Which slots' requests ask for them, and their values.

    Args:
        model: gives the logits. builder: knows the prompts. num_slots: of requests.
    """

    def __init__(self, model: Model, builder: BatchBuilder, num_slots: int) -> None:
        self._model = model
        self._builder = builder
        self._num_top: list[int | None] = [None] * num_slots

    def assign(self, assignment: SlotAssignment) -> None:
        """A request takes a slot."""
        self._num_top[assignment.slot] = assignment.params.prompt_logprobs

    def are_due(self, row: PlanRow) -> bool:
        """Whether tokens of a prompt follow the row's first, and are asked for."""
        is_asked = self._num_top[row.slot] is not None
        return is_asked and row.start + 1 < self._builder.num_prompt_tokens(row.slot)

    def add(self, result: RowResult, row: PlanRow, hidden: Tensor) -> RowResult:
        """The result with log-probabilities of the prompt tokens that follow this row's tokens.

        Args:
            result: without them.
            row: whose result it is.
            hidden: [tokens of the row, E], after the last layer.
        """
        stop = min(row.start + row.num_tokens + 1, self._builder.num_prompt_tokens(row.slot))
        next_ids = self._builder.token_range(row.slot, row.start + 1, stop)

        def compute_logits(first: int, last: int) -> Tensor:
            return self._model.logits(self._model.finish(hidden[first:last]))

        try:
            entries = list(prompt_logprobs(compute_logits, next_ids, self._num_top[row.slot] or 0))
        except NumericalError as error:
            return RowResult(row.slot, [], error=str(error))
        return RowResult(row.slot, result.token_ids, result.logprobs, entries, result.error)
