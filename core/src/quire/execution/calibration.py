"""Made-up steps that are timed before the first request."""

from __future__ import annotations

from collections.abc import Iterator

from quire.api.request import SamplingParams
from quire.api.step import BlockTableUpdate, PlanRow, SlotAssignment, StepPlan
from quire.execution.batch_builder import BatchLimits

CALIBRATION_S = 2.0
"""Seconds after which no larger step is measured."""
CALIBRATION_REPEATS = 4
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
    def num_rows(self) -> Iterator[int]:
        """Sizes of the steps to measure: powers of two, and the most that decode at once."""
        most = min(self._limits.max_num_seqs, self._limits.max_num_batched_tokens)
        size = 1
        while size < most:
            yield size
            size *= 2
        yield most

    def step(self, num_rows: int) -> StepPlan:
        """A decode of that many requests."""
        return StepPlan(
            step_id=0,
            assignments=[self._assignment(slot, [0]) for slot in range(num_rows)],
            table_updates=[BlockTableUpdate(slot, 0, [slot % self._num_blocks]) for slot in range(num_rows)],
            block_copies=[],
            rows=[PlanRow(slot, start=0, num_tokens=1, is_sampled=True) for slot in range(num_rows)],
        )

    def prompt(self) -> StepPlan:
        """A request whose prompt repeats itself, with room for drafts; no rows."""
        size = self._limits.block_size
        num_tokens = min(_PROMPT_TOKENS, self._limits.max_model_len // 2)
        num_blocks = -(-(num_tokens + self._limits.max_drafts) // size)
        num_blocks = min(num_blocks, -(-self._limits.max_model_len // size))
        assignment = self._assignment(0, [index % _PERIOD for index in range(num_tokens)])
        blocks = [index % self._num_blocks for index in range(num_blocks)]
        return StepPlan(0, [assignment], [BlockTableUpdate(0, 0, blocks)], [], [])

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
