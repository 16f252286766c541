"""What a caller gets back; the fields are vLLM's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Logprob:
    """A token's log-probability, its rank (1 is the likeliest) and its text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


PositionLogprobs = dict[int, Logprob]


@dataclass(slots=True)
class SpeculationMetrics:
    """What became of drafts.

    Attributes:
        num_drafts: rows of steps in which drafts were verified.
        num_draft_tokens, num_accepted_tokens: over these rows.
        num_accepted_tokens_per_pos: by the position in the draft; as many entries as the longest draft had.
        num_steps_saved: steps that the same output would have taken more: accepted tokens that were kept
            (a stop drops those after it).
        propose_s: seconds spent proposing; of a request its share.
    """

    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_accepted_tokens_per_pos: list[int] = field(default_factory=list)
    num_steps_saved: int = 0
    propose_s: float = 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted by proposed tokens; 0 where none was proposed."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens that a row with drafts gave on average, the target's own included; 1 where there was none."""
        return 1 + (self.num_accepted_tokens / self.num_drafts if self.num_drafts else 0.0)

    def add_row(self, num_drafts: int, num_accepted: int) -> None:
        """Count one row: its drafts, and those accepted."""
        self.num_drafts += 1
        self.num_draft_tokens += num_drafts
        self.num_accepted_tokens += num_accepted
        per_position = self.num_accepted_tokens_per_pos
        per_position.extend([0] * (num_drafts - len(per_position)))
        for position in range(num_accepted):
            per_position[position] += 1

    def add(self, other: SpeculationMetrics) -> None:
        """Add another's counts."""
        self.num_drafts += other.num_drafts
        self.num_draft_tokens += other.num_draft_tokens
        self.num_accepted_tokens += other.num_accepted_tokens
        self.num_steps_saved += other.num_steps_saved
        self.propose_s += other.propose_s
        per_position = self.num_accepted_tokens_per_pos
        per_position.extend([0] * (len(other.num_accepted_tokens_per_pos) - len(per_position)))
        for position, count in enumerate(other.num_accepted_tokens_per_pos):
            per_position[position] += count


@dataclass(slots=True)
class RequestMetrics:
    """Timing and counts of one request; times are `time.monotonic` seconds.

    Attributes:
        first_scheduled_s, first_token_s, finished_s: None until it happened.
        num_cached_tokens: prompt tokens taken from the prefix cache.
        num_preemptions: times its blocks were taken away.
        speculation: what became of its drafts; None where there were none.
    """

    arrival_s: float
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    finished_s: float | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    speculation: SpeculationMetrics | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One choice of a request.

    Attributes:
        text: detokenized so far; empty without a tokenizer.
        token_ids: generated so far, a stop token included.
        cumulative_logprob: sum over sampled tokens, None unless logprobs were asked for.
        logprobs: per output position, token id to Logprob.
        finish_reason: "stop", "length", "abort", "error", or None while running.
        stop_reason: the stop string or stop token id; None for EOS.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        """Whether this choice has ended."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """One prompt and its choices, cumulative.

    Attributes:
        prompt_logprobs: one entry per prompt token, the first None; None unless asked for.
        error: set when `finish_reason` of a choice is "error".
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    num_cached_tokens: int = 0
    metrics: RequestMetrics | None = None
    error: Exception | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class ChoiceDelta:
    """What one choice has got since the last delta.

    Attributes:
        text: that can no longer change; "" while a character or a stop string may be incomplete.
        token_ids: new ones, a stop token included.
        logprobs: one entry for each new token; None unless asked for.
        finish_reason, stop_reason: as in `CompletionOutput`; None while it runs.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class OutputDelta:
    """What a request has got since the last delta; all deltas together are its `RequestOutput`.

    Attributes:
        choices: those that have got something or ended.
        prompt_logprobs: with the first delta that has choices; None unless asked for.
        metrics: with the last one.
        error: set when `finish_reason` of a choice is "error".
    """

    request_id: str
    choices: list[ChoiceDelta]
    finished: bool = False
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    metrics: RequestMetrics | None = None
    error: Exception | None = None


@dataclass(slots=True, frozen=True)
class Metric:
    """A named figure of the engine.

    Attributes:
        kind: "counter" (only grows), "gauge", or "histogram": its counts so far, each a figure whose name
            ends in "_bucket" (values up to the label `le`), "_count" or "_sum".
    """

    name: str
    value: float
    kind: str
    help: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
