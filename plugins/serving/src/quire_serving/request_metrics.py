"""What the server measures of each request."""

from __future__ import annotations

import time
from collections.abc import Iterable

from quire.api.client import EngineRequest
from quire.api.outputs import OutputDelta, RequestMetrics
from quire_serving.histogram import Histogram, one_two_five

# Names and buckets are those of vLLM, vllm/v1/metrics/loggers.py.
_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_CHOICES = (1, 2, 5, 10, 20)


class RequestHistograms:
    """Times and sizes of requests, as the server sees them.

    Attributes:
        families: by name, the histogram and its description.
        num_abandoned: requests that their clients left before the end.
    """

    def __init__(self, max_model_len: int) -> None:
        self.num_abandoned = 0
        self.families: dict[str, tuple[Histogram, str]] = {}
        lengths = one_two_five(max_model_len)
        self.first_token = self._add(
            "time_to_first_token_seconds", _FIRST_TOKEN_S, "time from a request to its first token"
        )
        self.inter_token = self._add(
            "inter_token_latency_seconds", _TOKEN_S, "time between deliveries of tokens of one choice"
        )
        self.per_token = self._add(
            "request_time_per_output_token_seconds",
            _TOKEN_S,
            "mean time per token after the first, by request",
        )
        self.latency = self._add("e2e_request_latency_seconds", _REQUEST_S, "time from a request to its end")
        self.queue = self._add(
            "request_queue_time_seconds", _REQUEST_S, "time a request waited in the engine"
        )
        self.prefill = self._add(
            "request_prefill_time_seconds", _REQUEST_S, "time from a request's first step to its first token"
        )
        self.decode = self._add(
            "request_decode_time_seconds", _REQUEST_S, "time from a request's first token to its last"
        )
        self.inference = self._add(
            "request_inference_time_seconds", _REQUEST_S, "time from a request's first step to its last token"
        )
        self.prompt_tokens = self._add("request_prompt_tokens", lengths, "tokens of a request's prompt")
        self.generation_tokens = self._add(
            "request_generation_tokens", lengths, "tokens that a request got, all choices together"
        )
        self.longest_choice = self._add(
            "request_max_num_generation_tokens", lengths, "tokens of a request's longest choice"
        )
        self.prefill_computed = self._add(
            "request_prefill_kv_computed_tokens", lengths, "tokens of a request's prompt that were not cached"
        )
        self.n = self._add("request_params_n", _CHOICES, "choices that a request asked for")
        self.max_tokens = self._add("request_params_max_tokens", lengths, "tokens that a request allowed")

    def observe_times(self, times: RequestMetrics) -> None:
        """Count where the engine says a request's time went."""
        scheduled, first, last = times.first_scheduled_s, times.first_token_s, times.last_token_s
        if scheduled is None:
            return
        self.queue.observe(scheduled - times.arrival_s)
        if first is None or last is None:
            return
        self.prefill.observe(first - scheduled)
        self.decode.observe(last - first)
        self.inference.observe(last - scheduled)

    def _add(self, name: str, bounds: Iterable[float], text: str) -> Histogram:
        histogram = Histogram(tuple(bounds))
        self.families[name] = histogram, text
        return histogram


class RequestTimer:
    """Follows one request from its start; see `ServerMetrics.started`.

    Attributes:
        num_prompt: tokens of the prompt.
        first_token_s: seconds from the start to the first token; None while there is none.
    """

    __slots__ = ("_begin_s", "_choices", "_histograms", "_is_open", "first_token_s", "num_prompt")

    def __init__(self, histograms: RequestHistograms, request: EngineRequest) -> None:
        self._histograms = histograms
        self.num_prompt = len(request.token_ids)
        self._begin_s = time.monotonic()
        self.first_token_s: float | None = None
        self._choices: dict[int, tuple[float, int]] = {}  # by index: when its last token came, and how many
        self._is_open = True

    @property
    def num_output(self) -> int:
        """Tokens so far, all choices together."""
        return sum(count for _, count in self._choices.values())

    def delta(self, delta: OutputDelta) -> None:
        """Count what a request has got; to be called with each of its deltas, the last included."""
        now = time.monotonic()
        choices = self._choices
        for choice in delta.choices:
            if not choice.token_ids:
                continue
            last_s, count = choices.get(choice.index, (now, 0))
            if count:
                self._histograms.inter_token.observe(now - last_s)
            elif self.first_token_s is None:
                self.first_token_s = now - self._begin_s
                self._histograms.first_token.observe(self.first_token_s)
            choices[choice.index] = now, count + len(choice.token_ids)
        if delta.finished:
            self._finish(delta, now)

    def close(self) -> None:
        """Say that no more comes; a request that has not ended counts as left by its client."""
        if self._is_open:
            self._is_open = False
            self._histograms.num_abandoned += 1

    def _finish(self, delta: OutputDelta, now: float) -> None:
        self._is_open = False
        if delta.error is not None:
            return  # a failure's times would pass for a fast answer's
        histograms = self._histograms
        longest = max((count for _, count in self._choices.values()), default=0)
        seconds = now - self._begin_s
        histograms.latency.observe(seconds)
        histograms.prompt_tokens.observe(self.num_prompt)
        histograms.generation_tokens.observe(self.num_output)
        histograms.longest_choice.observe(longest)
        if longest > 1 and self.first_token_s is not None:
            histograms.per_token.observe((seconds - self.first_token_s) / (longest - 1))
        if delta.metrics is not None:
            histograms.observe_times(delta.metrics)
            histograms.prefill_computed.observe(self.num_prompt - delta.metrics.num_cached_tokens)
