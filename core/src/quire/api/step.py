"""What the scheduler and an executor exchange: a plan of one step, and its result. Ints only."""

from __future__ import annotations

from dataclasses import dataclass, field

from quire.api.request import SamplingParams


@dataclass(slots=True, frozen=True)
class SlotAssignment:
    """A request takes a slot: all that the runner must know of it. Replaces what the slot held.

    Attributes:
        token_ids: prompt and earlier output (after a preemption the output is old output).
        num_prompt_tokens: how many of `token_ids` are prompt.
        stop_token_ids: EOS and stop tokens, not sampled before `min_tokens` outputs.
        logits_processors: names of those that change this request's logits, in their order; their
            arguments are in `params.extra_args`.
        salt: of the request, for drafters.
    """

    slot: int
    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    seed: int
    stop_token_ids: frozenset[int]
    logits_processors: tuple[str, ...] = ()
    salt: str = ""


@dataclass(slots=True, frozen=True)
class PlanRow:
    """One request's part in a step.

    Attributes:
        slot: the runner's slot of the request.
        start: position of the first scheduled token (the tokens before it are computed).
        num_tokens: scheduled tokens; the runner knows their ids.
        is_sampled: whether a token is sampled from the last scheduled token's logits. False for
            a prompt chunk that is not the last.
        num_drafts: how many of the tokens, the last ones, are drafts to verify; then the token before
            them is the only other one, and a token is sampled from each one's logits.
    """

    slot: int
    start: int
    num_tokens: int
    is_sampled: bool
    num_drafts: int = 0


@dataclass(slots=True, frozen=True)
class BlockTableUpdate:
    """`block_ids` go into the slot's block table from `first_index` on, and end it."""

    slot: int
    first_index: int
    block_ids: list[int]


@dataclass(slots=True, frozen=True)
class StepPlan:
    """One step. The runner applies, in order: releases, assignments, table updates, block copies, rows.

    Attributes:
        rows: decodes and prompt chunks in the scheduler's order.
        block_copies: (source, destination) block ids to copy before the forward pass.
        released_slots: their requests ended or were preempted since the last plan.
        is_drafting: whether drafts for the next step are wanted.
    """

    step_id: int
    assignments: list[SlotAssignment]
    table_updates: list[BlockTableUpdate]
    block_copies: list[tuple[int, int]]
    rows: list[PlanRow]
    released_slots: list[int] = field(default_factory=list)
    is_drafting: bool = False

    @property
    def num_tokens(self) -> int:
        """Scheduled tokens over all rows."""
        return sum(row.num_tokens for row in self.rows)


@dataclass(slots=True, frozen=True)
class TokenLogprobs:
    """Log-probabilities at one position.

    Attributes:
        token_id: the sampled token, or the prompt's token.
        logprob, rank: of that token; rank 1 is the likeliest.
        top_ids, top_logprobs: the likeliest tokens, best first; as many as were asked for.
    """

    token_id: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


@dataclass(slots=True, frozen=True)
class RowResult:
    """What one plan row gave.

    Attributes:
        token_ids: sampled tokens; empty for a chunk that is not the last, or on an error. Of a row with
            drafts: those that were accepted, and the one after them.
        logprobs: one per sampled token, where asked for.
        prompt_logprobs: of prompt positions start+1 .. start+num_tokens that lie in the prompt.
        error: why this row alone failed, e.g. "logits are not finite".
        failed_plugin: the plugin whose code failed, where that is why; the row's KV is good then.
        num_drafts: drafts for the tokens that follow, which the runner keeps for the slot's next row.
        propose_s: the row's share of the time spent proposing.
    """

    slot: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    error: str | None = None
    failed_plugin: str | None = None
    num_drafts: int = 0
    propose_s: float = 0.0


@dataclass(slots=True, frozen=True)
class StepResult:
    """The rows of a plan, in its order."""

    step_id: int
    rows: list[RowResult] = field(default_factory=list)
