"""The scheduler's values: limits, what it knows of a request, of a step, and what a step changed."""

from __future__ import annotations

from dataclasses import dataclass, field

from quire.api.errors import ConfigError
from quire.api.outputs import SpeculationMetrics
from quire.api.request import Request, RequestStatus
from quire.api.step import BlockTableUpdate, PlanRow, SlotAssignment, StepPlan, TokenLogprobs
from quire.kvcache.allocation import Allocation


@dataclass(slots=True, frozen=True)
class SchedulerLimits:
    """Bounds of a step.

    Attributes:
        max_num_seqs: requests that run at once; their slots are 0 to max_num_seqs - 1.
        max_num_batched_tokens: the token budget of a step; may be smaller than max_num_seqs.
        max_model_len: prompt and output tokens of one request.
        enable_chunked_prefill: False schedules a request's tokens whole or not at all in a step; only
            a recompute that is longer than the budget is still done in chunks.
        max_drafting_requests: with more running requests nothing is drafted. None: no such limit.
        num_lookahead_tokens: KV slots past a row's tokens that a draft model writes, where there is room.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    enable_chunked_prefill: bool = True
    num_lookahead_tokens: int = 0
    max_drafting_requests: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is too small: give at least 1")
        if self.max_model_len < 2:
            raise ConfigError(f"max_model_len={self.max_model_len} is too small: give at least 2")


@dataclass(slots=True, eq=False)
class RequestState:
    """A request as the scheduler tracks it, from `add` until its last planned row is updated.

    Attributes:
        arrival_index: counts requests in the order of `add`.
        key: of the policy, and the arrival index to break ties; the order among running requests.
        num_planned: rows in plans that are not updated yet.
        prompt_step_id: the step that completes the prompt's KV since admission; None before.
        is_forked: whether its prompt's blocks came from its leader at admission.
        is_damaged: whether it ended with blocks whose content is not to be trusted.
        num_prompt_logprobs: prompt positions whose logprobs were handed out.
        num_drafts: draft tokens that the runner holds for its next row.
        is_verifying: whether a plan not updated yet verifies drafts: where it goes on is not known then.
        ticket: its valid entry in the waiting queue, None where it is not queued.
    """

    request: Request
    arrival_index: int
    key: tuple[tuple[float, ...], int]
    num_planned: int = 0
    prompt_step_id: int | None = None
    is_forked: bool = False
    is_damaged: bool = False
    num_prompt_logprobs: int = 0
    num_drafts: int = 0
    is_verifying: bool = False
    ticket: tuple[tuple[float, ...], int, RequestState] | None = None

    @property
    def is_running(self) -> bool:
        """Whether it has a slot and goes on."""
        return self.request.status is RequestStatus.RUNNING


@dataclass(slots=True, eq=False)
class PlannedRow:
    """A row of a plan that is not updated yet.

    Attributes:
        digests: prefix cache entries that become certain when the row succeeds.
        is_discarded: whether its result is to be ignored, since what it read was not valid.
    """

    state: RequestState
    row: PlanRow
    digests: list[bytes]
    is_discarded: bool = False


@dataclass(slots=True, eq=False)
class RequestUpdate:
    """What a step gave to one request.

    Attributes:
        new_token_ids: appended to its output in this step; a stop token included.
        logprobs: one per new token, where asked for.
        prompt_logprobs: of the next prompt positions (position 0 has none), each handed out once.
        is_finished: whether it ended; the reason and an error are in the request.
    """

    request: Request
    new_token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    is_finished: bool = False


@dataclass(slots=True, frozen=True)
class SchedulerStats:
    """Counters since the start, and the queues of now (`num_running`, `num_waiting`).

    Attributes:
        speculation: None where drafts were never asked for.
    """

    num_steps: int
    num_scheduled_tokens: int
    num_preemptions: int
    num_forks: int
    num_query_tokens: int
    num_hit_tokens: int
    num_running: int
    num_waiting: int
    speculation: SpeculationMetrics | None = None


@dataclass(slots=True)
class PlanBuilder:
    """Collects a plan. `budget` is what is left of the step's tokens."""

    step_id: int
    budget: int
    assignments: list[SlotAssignment] = field(default_factory=list)
    table_updates: list[BlockTableUpdate] = field(default_factory=list)
    block_copies: list[tuple[int, int]] = field(default_factory=list)
    rows: list[PlanRow] = field(default_factory=list)
    planned_rows: list[PlannedRow] = field(default_factory=list)

    def assign(self, slot: int, request: Request, block_ids: list[int]) -> None:
        """The request takes a slot, with this block table."""
        self.assignments.append(
            SlotAssignment(
                slot=slot,
                request_id=request.request_id,
                token_ids=request.token_ids(),
                num_prompt_tokens=request.num_prompt_tokens,
                params=request.params,
                seed=request.seed,
                stop_token_ids=request.stop_token_ids,
                logits_processors=request.logits_processors,
                salt=request.salt,
            )
        )
        self.table_updates.append(BlockTableUpdate(slot, 0, block_ids))

    def change_table(self, slot: int, allocation: Allocation) -> None:
        """A running request's block table changes."""
        self.table_updates.append(BlockTableUpdate(slot, allocation.first_index, list(allocation.block_ids)))
        self.block_copies.extend(allocation.copies)

    def cut_table(self, slot: int, num_blocks: int) -> None:
        """A running request gave up the blocks after its first ones."""
        self.table_updates.append(BlockTableUpdate(slot, num_blocks, []))

    def drop_table(self, slot: int) -> None:
        """The request in the slot is preempted: nothing of this plan is for it."""
        self.table_updates = [update for update in self.table_updates if update.slot != slot]

    def build(self, released_slots: list[int], is_drafting: bool) -> StepPlan:
        """The finished plan."""
        return StepPlan(
            self.step_id,
            self.assignments,
            self.table_updates,
            self.block_copies,
            self.rows,
            released_slots,
            is_drafting,
        )
