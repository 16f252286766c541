"""What a step's result means for its requests: tokens, ends, and what became of drafts."""

from __future__ import annotations

from collections.abc import Sequence

from quire.api.errors import StepError
from quire.api.outputs import SpeculationMetrics
from quire.api.request import FinishReason, Request
from quire.api.step import PlanRow, RowResult, StepPlan, StepResult
from quire.scheduling.plan import PlannedRow, RequestState, RequestUpdate
from quire.scheduling.tracked import TrackedRequests


def check_result(plan: StepPlan, rows: Sequence[PlannedRow], result: StepResult) -> None:
    """Raise StepError where a result is not of this plan, or has more or fewer tokens than it can have."""
    if result.step_id != plan.step_id or len(result.rows) != len(rows):
        raise StepError(
            f"step {plan.step_id} has {len(rows)} rows, its result is of step {result.step_id} "
            f"and has {len(result.rows)}"
        )
    for planned, found in zip(rows, result.rows, strict=True):
        if found.slot != planned.row.slot:
            raise StepError(f"a result is for slot {found.slot}, its plan's row for {planned.row.slot}")
        if len(found.token_ids) > 1 + planned.row.num_drafts:
            raise StepError(
                f"slot {found.slot} has {len(found.token_ids)} tokens for {planned.row.num_drafts} drafts"
            )
        if planned.row.is_sampled and not found.token_ids and found.error is None:
            raise StepError(f"slot {found.slot} was to be sampled and has neither token nor error")


class ResultIntake:
    """Takes in the results of rows that are valid.

    Attributes:
        speculation: what became of all drafts so far; None while nothing was drafted.
    """

    def __init__(self, requests: TrackedRequests) -> None:
        self._requests = requests
        self.speculation: SpeculationMetrics | None = None

    def apply(self, state: RequestState, row: PlanRow, result: RowResult) -> RequestUpdate | None:
        """Append a valid row's tokens and end the request where it should."""
        prompt_logprobs = None
        if result.prompt_logprobs is not None:
            num_known = max(0, state.num_prompt_logprobs - row.start)
            prompt_logprobs = result.prompt_logprobs[num_known:] or None
            state.num_prompt_logprobs = max(
                state.num_prompt_logprobs, row.start + len(result.prompt_logprobs)
            )
        request = state.request
        if not row.is_sampled:
            if prompt_logprobs is None:
                return None
            return RequestUpdate(request, [], prompt_logprobs=prompt_logprobs)
        request.num_in_flight -= 1 + row.num_drafts
        num_accepted = len(result.token_ids) - 1
        if state.is_running:
            request.num_computed_tokens -= row.num_drafts - num_accepted if row.num_drafts else 0
            state.num_drafts = result.num_drafts if state.num_planned == 0 else 0
        output, params = request.output_token_ids, request.params
        new_token_ids = result.token_ids
        reason = stop_reason = None
        for index, token_id in enumerate(new_token_ids):
            output.append(token_id)
            if token_id in request.stop_token_ids and len(output) >= params.min_tokens:
                reason = FinishReason.STOP
                stop_reason = token_id if token_id in (params.stop_token_ids or ()) else None
            elif len(request.prompt_token_ids) + len(output) >= request.max_total_tokens:
                reason = FinishReason.LENGTH
            if reason is not None:
                new_token_ids = new_token_ids[: index + 1]
                self._requests.end(state, reason, stop_reason, None)
                break
        logprobs = None if result.logprobs is None else result.logprobs[: len(new_token_ids)]
        if row.num_drafts or result.propose_s:
            self._count_drafts(request, row, num_accepted, result.propose_s)
        return RequestUpdate(request, new_token_ids, logprobs, prompt_logprobs, reason is not None)

    def note_steps_saved(self, request: Request, num_steps: int) -> None:
        """The request kept so many accepted drafts of a step."""
        for metrics in (request.speculation, self.speculation):
            if metrics is not None:
                metrics.num_steps_saved += num_steps

    def _count_drafts(self, request: Request, row: PlanRow, num_accepted: int, propose_s: float) -> None:
        if request.speculation is None:
            request.speculation = SpeculationMetrics()
        if self.speculation is None:
            self.speculation = SpeculationMetrics()
        for metrics in (request.speculation, self.speculation):
            metrics.propose_s += propose_s
            if row.num_drafts:
                metrics.add_row(row.num_drafts, num_accepted)
