"""What the server measures, and all figures as Prometheus text. Used on the server's event loop only."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric as Family

from quire.api.client import EngineClient, EngineRequest, EngineStatus
from quire.api.errors import QuireError
from quire.api.outputs import Metric, OutputDelta, RequestMetrics
from quire_serving.histogram import Histogram, one_two_five

ENGINE_TIMEOUT_S = 2.0
"""An engine that does not answer for so long is left out of a scrape."""

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
# Quire's own: /health answers in under a millisecond, a stream may take minutes.
_HTTP_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestHistograms:
    """Times and sizes of requests, as the server sees them."""

    def __init__(self, max_model_len: int) -> None:
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
    """Follows one request from its start; see `ServerMetrics.started`."""

    __slots__ = ("_begin_s", "_choices", "_first_s", "_histograms", "_is_open", "_metrics", "_num_prompt")

    def __init__(self, metrics: ServerMetrics, request: EngineRequest) -> None:
        self._metrics = metrics
        self._histograms = metrics.requests
        self._num_prompt = len(request.token_ids)
        self._begin_s = time.monotonic()
        self._first_s: float | None = None
        self._choices: dict[int, tuple[float, int]] = {}  # by index: when its last token came, and how many
        self._is_open = True

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
            elif self._first_s is None:
                self._first_s = now
                self._histograms.first_token.observe(now - self._begin_s)
            choices[choice.index] = now, count + len(choice.token_ids)
        if delta.finished:
            self._finish(delta, now)

    def close(self) -> None:
        """Say that no more comes; a request that has not ended counts as left by its client."""
        if self._is_open:
            self._is_open = False
            self._metrics.num_abandoned += 1

    def _finish(self, delta: OutputDelta, now: float) -> None:
        self._is_open = False
        if delta.error is not None:
            return  # a failure's times would pass for a fast answer's
        histograms = self._histograms
        counts = [count for _, count in self._choices.values()]
        longest = max(counts, default=0)
        histograms.latency.observe(now - self._begin_s)
        histograms.prompt_tokens.observe(self._num_prompt)
        histograms.generation_tokens.observe(sum(counts))
        histograms.longest_choice.observe(longest)
        if longest > 1 and self._first_s is not None:
            histograms.per_token.observe((now - self._first_s) / (longest - 1))
        if delta.metrics is not None:
            histograms.observe_times(delta.metrics)


class ServerMetrics:
    """One server's figures: its own, and those of its engine when it is asked for them.

    Attributes:
        requests: times and sizes of requests.
        num_abandoned: requests that their clients left before the end.
    """

    def __init__(self, client: EngineClient, model_name: str, prefix: str = "quire") -> None:
        self._client = client
        self._labels = {"model_name": model_name}
        self._prefix = prefix
        self.requests = RequestHistograms(client.description.max_model_len)
        self.num_abandoned = 0
        self._rejected: Counter[str] = Counter()
        self._http: Counter[tuple[str, str, str]] = Counter()
        self._http_seconds: dict[tuple[str, str], Histogram] = {}

    def started(self, request: EngineRequest) -> RequestTimer:
        """Count a request that is handed to the engine; the timer wants its deltas."""
        self.requests.n.observe(request.params.n)
        if request.params.max_tokens is not None:
            self.requests.max_tokens.observe(request.params.max_tokens)
        return RequestTimer(self, request)

    def rejected(self, code: str) -> None:
        """Count a request that was refused at the door, by its error's code."""
        self._rejected[code] += 1

    def http(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer.

        Args:
            method: anything; what is no method counts as "other", so that clients cannot add series.
            route: the route's path with its placeholders, not the path of the request.
            status: of the answer.
            seconds: until its last byte was handed over.
        """
        method = method if method in _METHODS else "other"
        self._http[method, route, str(status)] += 1
        histogram = self._http_seconds.get((method, route))
        if histogram is None:
            histogram = self._http_seconds[method, route] = Histogram(_HTTP_S)
        histogram.observe(seconds)

    async def render(self) -> bytes:
        """All figures in Prometheus's text format 0.0.4; without an engine, the server's own."""
        figures = await self._engine_figures()
        is_up = figures is not None
        status = self._client.status()
        families = [*self._grouped(_without_engine(status) if figures is None else figures)]
        families += self._of_server(status, is_up and status.is_ready)
        families += self._histograms()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families(families))
        return generate_latest(registry)

    async def _engine_figures(self) -> list[Metric] | None:
        try:
            async with asyncio.timeout(ENGINE_TIMEOUT_S):
                return await self._client.get_metrics()
        except (QuireError, TimeoutError, OSError):
            return None

    def _grouped(self, figures: Iterable[Metric]) -> Iterator[Family]:
        """The engine's figures by name: text has each name's description once, before its samples."""
        families: dict[str, Family] = {}
        for figure in figures:
            name = figure.name.removeprefix("quire:")
            family = families.get(name)
            if family is None:
                family = families[name] = self._family(name, figure.help, figure.kind)
            self._sample(family, figure.value, **figure.labels)
        return iter(families.values())

    def _of_server(self, status: EngineStatus, is_up: bool) -> Iterator[Family]:
        yield self._single("engine_up", is_up, "gauge", "1 when the engine answers and gets on with its work")
        yield self._single("engine_restarts", status.num_restarts, "counter", "restarts of the engine")
        yield self._single("requests_in_flight", status.num_requests, "gauge", "requests that have not ended")
        yield self._single(
            "requests_abandoned", self.num_abandoned, "counter", "requests that their clients left"
        )
        rejected = self._family("admission_rejections", "requests refused before they were queued", "counter")
        for code, count in sorted(self._rejected.items()):
            self._sample(rejected, count, reason=code)
        yield rejected
        answers = self._family("http_requests", "answers by method, route and status", "counter")
        for (method, route, code), count in sorted(self._http.items()):
            self._sample(answers, count, method=method, route=route, status=code)
        yield answers

    def _histograms(self) -> Iterator[Family]:
        for name, (histogram, text) in self.requests.families.items():
            family = self._family(name, text, "histogram")
            histogram.add_to(family, self._labels)
            yield family
        times = self._family(
            "http_request_duration_seconds", "time until an answer was sent whole", "histogram"
        )
        for (method, route), histogram in sorted(self._http_seconds.items()):
            histogram.add_to(times, {**self._labels, "method": method, "route": route})
        yield times

    def _single(self, name: str, value: float, kind: str, text: str) -> Family:
        family = self._family(name, text, kind)
        self._sample(family, value)
        return family

    def _family(self, name: str, text: str, kind: str) -> Family:
        return Family(f"{self._prefix}:{name}", text, kind)

    def _sample(self, family: Family, value: float, **labels: str) -> None:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        family.add_sample(name, {**self._labels, **labels}, value)


class _Families:
    """A prometheus_client collector of families that are ready."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> list[Family]:
        return self._families


def _without_engine(status: EngineStatus) -> list[Metric]:
    """What the server itself knows of the engine's queue."""
    return [
        Metric("quire:num_requests_running", status.num_running, "gauge", "requests that have a slot"),
        Metric("quire:num_requests_waiting", status.num_waiting, "gauge", "requests that wait for one"),
    ]
