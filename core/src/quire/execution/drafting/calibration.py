"""Made-up steps that are timed before the first request."""

from __future__ import annotations

from collections.abc import Iterator

from quire.api.request import SamplingParams
from quire.api.step import BlockTableUpdate, PlanRow, SlotAssignment, StepPlan
from quire.execution.batch_builder import BatchLimits

CALIBRATION_S = 2.0
"""Seconds after which no larger step is measured."""
CALIBRATION_STEP_S = 0.1
"""Seconds after which a step is not measured again."""
CALIBRATION_REPEATS = 5
_PROMPT_TOKENS = 64
_PERIOD = 8


class CalibrationPlans:
    """Plans of steps that nobody asked for.

    Args:
        limits: of the runner. num_blocks: of the KV cache; rows may share blocks, since nothing is kept.
    """

    def __init__(self, limits: BatchLimits, num_blocks: int) -> None:
        self._limits = limits
        self._num_blocks = num_blocks

    @property
    def sizes(self) -> Iterator[int]:
        """Tokens of the steps to measure: powers of two, and the most that all requests and drafts can be."""
        most = min(self._limits.max_rows, self._limits.max_num_batched_tokens)
        size = 1
        while size < most:
            yield size
            size *= 2
        yield most

    def step(self, num_tokens: int) -> StepPlan:
        """A decode of that many tokens: of as many requests as there can be, and drafts for the rest."""
        num_rows = min(num_tokens, self._limits.max_num_seqs)
        each, more = divmod(num_tokens, num_rows)
        lengths = [each + (slot < more) for slot in range(num_rows)]
        num_blocks = -(-max(lengths) // self._limits.block_size)
        return StepPlan(
            step_id=0,
            assignments=[self._assignment(slot, [0]) for slot in range(num_rows)],
            table_updates=[
                BlockTableUpdate(slot, 0, self._blocks(slot * num_blocks, num_blocks))
                for slot in range(num_rows)
            ],
            block_copies=[],
            rows=[
                PlanRow(slot, start=0, num_tokens=length, is_sampled=True, num_drafts=length - 1)
                for slot, length in enumerate(lengths)
            ],
        )

    def prompt(self) -> StepPlan:
        """A request whose prompt repeats itself, with room for drafts; no rows."""
        size = self._limits.block_size
        num_tokens = min(_PROMPT_TOKENS, self._limits.max_model_len // 2)
        num_blocks = -(-(num_tokens + self._limits.max_drafts) // size)
        num_blocks = min(num_blocks, -(-self._limits.max_model_len // size))
        assignment = self._assignment(0, [index % _PERIOD for index in range(num_tokens)])
        return StepPlan(0, [assignment], [BlockTableUpdate(0, 0, self._blocks(0, num_blocks))], [], [])

    def _blocks(self, first: int, count: int) -> list[int]:
        return [index % self._num_blocks for index in range(first, first + count)]

    def _assignment(self, slot: int, token_ids: list[int]) -> SlotAssignment:
        return SlotAssignment(
            slot=slot,
            request_id=f"calibration-{slot}",
            token_ids=token_ids,
            num_prompt_tokens=len(token_ids),
            params=SamplingParams(temperature=0.0, max_tokens=None),
            seed=0,
            stop_token_ids=frozenset(),
        )
