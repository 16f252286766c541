"""The runner's side of speculation: asks the drafter, keeps the drafts of each slot, and tells what became of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quire.api.request import SamplingParams
from quire.api.speculation import DraftOutcome, DraftRequest
from quire.api.step import PlanRow, RowResult, SlotAssignment, StepPlan
from quire.execution.batch_builder import BatchBuilder, BatchLimits, BuiltBatch
from quire.execution.drafting.control import DraftControl
from quire.execution.drafting.draft_model import PagedDraftModel
from quire.execution.drafting.guarded_drafter import GuardedDrafter
from quire.execution.sampling_state import SamplingState


@dataclass(slots=True)
class _DraftedSlot:
    """What is kept of the request in a slot.

    Attributes:
        max_total_tokens: how many tokens it can have at most.
    """

    request_id: str
    num_prompt_tokens: int
    max_total_tokens: int
    params: SamplingParams
    salt: str


@dataclass(slots=True, frozen=True)
class Proposals:
    """What the drafter was asked for after a step.

    Attributes:
        seconds: that it took, for each request that was asked for.
        num_drafts: by slot that was asked for, the drafts that wait behind its tokens.
    """

    seconds: float
    num_drafts: dict[int, int]


@dataclass(slots=True, frozen=True)
class DrafterRules:
    """How an engine uses its drafter.

    Attributes:
        max_drafts: most draft tokens of a request in a step.
        models: those that the drafter runs. They write KV, so that drafts need slots when they are proposed.
    """

    max_drafts: int
    models: tuple[PagedDraftModel, ...] = ()


@dataclass(slots=True, frozen=True)
class RunnerParts:
    """What a runner shares with its speculator: its batches, its slots' sampling state, and its limits."""

    builder: BatchBuilder
    sampling: SamplingState
    limits: BatchLimits


class Speculator:
    """Proposes drafts after each step, for the next.

    Args:
        drafter: guarded. control: says how many drafts are worth asking for.
        builder: holds the slots' tokens; drafts are written behind them.
        limits: of the runner.
    """

    def __init__(
        self,
        drafter: GuardedDrafter,
        control: DraftControl,
        builder: BatchBuilder,
        limits: BatchLimits,
        rules: DrafterRules,
    ) -> None:
        self.drafter = drafter
        self.control = control
        self._builder = builder
        self._max_model_len = limits.max_model_len
        self._rules = rules
        self._slots: dict[int, _DraftedSlot] = {}
        self._slot_of: dict[str, int] = {}

    def assign(self, assignment: SlotAssignment) -> None:
        """A request takes a slot."""
        params = assignment.params
        limit = self._rules.max_drafts
        if params.max_draft_tokens is not None:
            limit = min(limit, params.max_draft_tokens)
        max_total = self._max_model_len
        if params.max_tokens is not None:
            max_total = min(max_total, assignment.num_prompt_tokens + params.max_tokens)
        self._slots[assignment.slot] = _DraftedSlot(
            request_id=assignment.request_id,
            num_prompt_tokens=assignment.num_prompt_tokens,
            max_total_tokens=max_total,
            params=params.read_only_copy(),
            salt=assignment.salt,
        )
        self._slot_of[assignment.request_id] = assignment.slot
        self.control.assign(assignment.slot, limit)

    def release(self, slots: Sequence[int]) -> None:
        """The requests left these slots; those that hold nothing are passed over."""
        requests = [self._request(slot, 0) for slot in slots if slot in self._slots]
        for request in requests:
            slot = self._slot_of.pop(request.request_id)
            del self._slots[slot]
            self.control.assign(slot, 0)
        if requests:
            self.drafter.released(requests)

    def apply(self, plan: StepPlan) -> None:
        """Bring the draft models' caches up to date with a plan."""
        for model in self._rules.models:
            model.apply(plan)

    def note_target(self, built: BuiltBatch) -> None:
        """The target computes this batch now."""
        if self._rules.models:
            row_drafts = [self.draft_ids(row) for row in built.rows]
            for model in self._rules.models:
                model.note_target(built, row_drafts)

    def slot_of(self, request: DraftRequest) -> int:
        """Where a request that a drafter was shown runs."""
        return self._slot_of[request.request_id]

    def draft_ids(self, row: PlanRow) -> list[int]:
        """The drafts that a row verifies."""
        end = row.start + row.num_tokens
        return self._builder.token_range(row.slot, end - row.num_drafts, end)

    def follow_up(self, plan: StepPlan, results: list[RowResult], seconds: float) -> list[RowResult]:
        """A step was run: learn of it, and propose for the next one.

        Args:
            plan: of the step.
            results: in the plan's order.
            seconds: that the step took.

        Returns:
            The results, with how many drafts wait for each request.
        """
        sampled = [index for index, result in enumerate(results) if result.token_ids and result.error is None]
        rows = [plan.rows[index] for index in sampled]
        self.note(rows, [results[index].token_ids for index in sampled])
        num_drafts = sum(row.num_drafts for row in plan.rows)
        if len(plan.rows) + num_drafts == plan.num_tokens:
            self.control.note_step(len(plan.rows), num_drafts, seconds)
        slots = [row.slot for row in rows]
        proposals = self.propose(slots) if plan.is_drafting and slots else None
        if proposals is None:
            return results
        counts, share = proposals.num_drafts, proposals.seconds
        return [
            replace(result, num_drafts=counts[result.slot], propose_s=share)
            if result.slot in counts
            else result
            for result in results
        ]

    def note(self, rows: Sequence[PlanRow], token_ids: Sequence[Sequence[int]]) -> None:
        """Rows were sampled: take in their tokens, and tell the drafter what became of its drafts."""
        if not self.control.is_comparing and not any(row.num_drafts for row in rows):
            self.control.note_plain()
            return
        self.control.note_tokens([row.slot for row in rows], [row.num_drafts for row in rows], token_ids)
        outcomes = [
            DraftOutcome(self._slots[row.slot].request_id, row.num_drafts, len(tokens) - 1)
            for row, tokens in zip(rows, token_ids, strict=True)
            if row.num_drafts
        ]
        if outcomes:
            self.drafter.verified(outcomes)

    def propose(self, slots: Sequence[int]) -> Proposals | None:
        """Ask for drafts for the requests in these slots, which have just got a token; None: nobody was asked."""
        begin = time.perf_counter()
        decision = self.control.limits(slots)
        if not any(decision.limits):
            return None
        limits = [
            min(limit, self._room(slot)) if limit else 0
            for slot, limit in zip(slots, decision.limits, strict=True)
        ]
        asked = [(slot, limit) for slot, limit in zip(slots, limits, strict=True) if limit > 0]
        if not asked:
            return None
        answers = self.drafter.propose([self._request(slot, limit) for slot, limit in asked])
        drafts = {slot: answer for (slot, _), answer in zip(asked, answers, strict=True)}
        if decision.is_shadow:
            self.control.shadow(list(drafts), list(drafts.values()))
            kept = [0] * len(slots)
        else:
            kept = self.control.trim(slots, [len(drafts.get(slot, ())) for slot in slots])
        counts = {slot: count for slot, count in zip(slots, kept, strict=True) if slot in drafts}
        for slot, count in counts.items():
            if count:
                self._builder.set_drafts(slot, drafts[slot][:count])
        seconds = time.perf_counter() - begin  # deciding included: it is part of what drafts cost
        self.control.note_propose(len(asked), seconds)
        return Proposals(seconds / len(asked), counts)

    def calibrate(self, assignment: SlotAssignment, step_times: list[tuple[int, float]]) -> None:
        """Time a proposal for a made-up request, and give the control its figures.

        Args:
            assignment: of the request; the builder has its tokens and table.
            step_times: tokens of a step, each in a row of its own, and seconds.
        """
        self.assign(assignment)
        room = self._room(assignment.slot)
        propose_s = 0.0
        for _ in range(2 if room > 0 else 0):  # the first also takes in the prompt
            begin = time.perf_counter()
            self.drafter.propose([self._request(assignment.slot, room)])
            propose_s = time.perf_counter() - begin
        self.release([assignment.slot])
        self.control.calibrate(step_times, propose_s)

    def close(self) -> None:
        """Let the drafter and its models go, and the requests that it still knows."""
        self.release(list(self._slots))
        self.drafter.close()
        for model in self._rules.models:
            model.close()

    def _room(self, slot: int) -> int:
        """Most drafts that the request in a slot can use: a token of its own always comes after them."""
        num_tokens = self._builder.num_known(slot)
        room = min(self._rules.max_drafts, self._slots[slot].max_total_tokens - num_tokens - 1)
        if self._rules.models:
            room = min(room, self._builder.num_slots(slot) - num_tokens + 1)
        return room

    def _request(self, slot: int, max_drafts: int) -> DraftRequest:
        state = self._slots[slot]
        return DraftRequest(
            request_id=state.request_id,
            token_ids=self._builder.known_tokens(slot),
            num_prompt_tokens=state.num_prompt_tokens,
            max_drafts=max_drafts,
            params=state.params,
            salt=state.salt,
        )
