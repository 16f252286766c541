"""A request: its prompt, its output so far, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from quire.api.outputs import SpeculationMetrics
from quire.api.sampling_params import (
    MAX_NUM_CHOICES,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    MIN_TEMPERATURE,
    SamplingParams,
)

__all__ = [
    "MAX_NUM_CHOICES",
    "MAX_STOP_CHARS",
    "MAX_STOP_STRINGS",
    "MIN_TEMPERATURE",
    "FinishReason",
    "Request",
    "RequestStatus",
    "SamplingParams",
]


class RequestStatus(Enum):
    """Where a request is."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


class FinishReason(Enum):
    """Why a request ended; the value is what outputs show."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(slots=True, eq=False)
class Request:
    """One prompt, its sampling parameters and its growing output: the scheduler's view.

    Prompt ids + output ids + seed are all that is needed to go on after a preemption or in
    another process. Mutated by the scheduler only.

    Attributes:
        num_computed_tokens: tokens whose KV is valid in the pool, or will be when the steps
            already planned have run.
        num_cached_tokens: of the prompt, taken from the prefix cache at first admission.
        num_in_flight: output tokens planned (sampled in a step not yet updated); 0 between steps, unless
            the next one is planned while one runs.
        first_scheduled_s: when it first got a slot, `time.monotonic` seconds like `arrival_s`.
        slot: index of this request's row state in the runner while it runs, else None.
        choice_index: which of its prompt's choices it is.
        fork_of: the request whose prompt blocks this one shares (choices 1 to n-1), else None.
        salt: isolates the prefix cache: only requests of equal salt share blocks.
        logits_processors: names of those that change its logits, settled when it was added.
        speculation: what became of its drafts; None while there were none.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    max_total_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    priority: int = 0
    arrival_s: float = 0.0
    salt: str = ""
    choice_index: int = 0
    fork_of: Request | None = None
    logits_processors: tuple[str, ...] = ()
    output_token_ids: list[int] = field(default_factory=list)
    status: RequestStatus = RequestStatus.WAITING
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    num_in_flight: int = 0
    num_preemptions: int = 0
    first_scheduled_s: float | None = None
    slot: int | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: Exception | None = None
    speculation: SpeculationMetrics | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        """Known tokens: prompt and output."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def reads_prefix_cache(self) -> bool:
        """False where every prompt position's logits are needed."""
        return self.params.prompt_logprobs is None

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self.status is RequestStatus.FINISHED

    def token_ids(self, start: int = 0, stop: int | None = None) -> list[int]:
        """Prompt and output tokens from `start` to `stop`, in one list."""
        split = len(self.prompt_token_ids)
        end = self.num_tokens if stop is None else stop
        if start >= split:
            return self.output_token_ids[start - split : end - split]
        if end <= split:
            return self.prompt_token_ids[start:end]
        return self.prompt_token_ids[start:] + self.output_token_ids[: end - split]
