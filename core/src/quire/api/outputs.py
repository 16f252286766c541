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
class RequestMetrics:
    """Timing and counts of one request; times are `time.monotonic` seconds.

    Attributes:
        first_scheduled_s, first_token_s, finished_s: None until it happened.
        num_cached_tokens: prompt tokens taken from the prefix cache.
        num_preemptions: times its blocks were taken away.
    """

    arrival_s: float
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    finished_s: float | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0


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


@dataclass(slots=True, frozen=True)
class Metric:
    """A named figure of the engine. `kind` is "counter" (only grows) or "gauge"."""

    name: str
    value: float
    kind: str
    help: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
