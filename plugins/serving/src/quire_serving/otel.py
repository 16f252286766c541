"""One span per request, with vLLM's attributes. Never prompts or answers: only counts, times and settings."""

from __future__ import annotations

import threading
import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer

from quire.api.extensions import EngineObserver, RequestView
from quire.api.outputs import RequestMetrics

_EXPORT_TIMEOUT_S = 3.0
_END_TIMEOUT_S = 3.0


def create_provider(endpoint: str, service_name: str) -> TracerProvider:
    """What makes spans and sends them, in a thread of its own; variables such as OTEL_TRACES_SAMPLER count."""
    resource = Resource.create({"service.name": service_name})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # see `end`
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def end(provider: TracerProvider) -> None:
    """Send what has not been sent yet; what a collector does not take in a few seconds is lost.

    The SDK itself waits for each batch in turn, so that a collector that hangs would hold up the engine's end.
    """
    thread = threading.Thread(target=provider.shutdown, name="otel-end", daemon=True)
    thread.start()
    thread.join(_END_TIMEOUT_S)


class RequestSpans(EngineObserver):
    """Writes the span of each request when it has ended, with the times that the engine noted."""

    def __init__(self, tracer: Tracer, model: str) -> None:
        self._tracer = tracer
        self._model = model

    def request_finished(self, request: RequestView, finish_reason: str) -> None:
        """See EngineObserver."""
        times = request.metrics or RequestMetrics(request.arrival_s)
        now_s = time.monotonic()
        epoch_s = time.time() - now_s  # the engine's clock is monotonic, spans want the time of day
        end_s = now_s if times.finished_s is None else times.finished_s
        span = self._tracer.start_span(
            "llm_request",
            kind=SpanKind.SERVER,
            start_time=int((epoch_s + request.arrival_s) * 1e9),
            attributes={**self._attributes(request, finish_reason), **_latencies(times, end_s)},
        )
        if finish_reason == "error":
            span.set_status(Status(StatusCode.ERROR))
        span.end(int((epoch_s + end_s) * 1e9))

    def _attributes(self, request: RequestView, finish_reason: str) -> dict[str, str | int | float]:
        params = request.params
        attributes: dict[str, str | int | float] = {
            "gen_ai.request.id": request.request_id,
            "gen_ai.response.model": self._model,
            "gen_ai.response.finish_reason": finish_reason,
            "gen_ai.request.n": params.n,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.usage.prompt_tokens": request.num_prompt_tokens,
            "gen_ai.usage.completion_tokens": request.num_output_tokens,
            "quire.num_preemptions": request.num_preemptions,
        }
        if params.max_tokens is not None:
            attributes["gen_ai.request.max_tokens"] = params.max_tokens
        if request.metrics is not None:
            attributes["quire.num_cached_tokens"] = request.metrics.num_cached_tokens
        return attributes


def _latencies(times: RequestMetrics, end_s: float) -> dict[str, float]:
    """Seconds of each stage that the request reached."""
    latencies = {"gen_ai.latency.e2e": end_s - times.arrival_s}
    scheduled, first, last = times.first_scheduled_s, times.first_token_s, times.last_token_s
    if scheduled is not None:
        latencies["gen_ai.latency.time_in_queue"] = scheduled - times.arrival_s
    if scheduled is not None and first is not None and last is not None:
        latencies["gen_ai.latency.time_to_first_token"] = first - times.arrival_s
        latencies["gen_ai.latency.time_in_model_prefill"] = first - scheduled
        latencies["gen_ai.latency.time_in_model_decode"] = last - first
        latencies["gen_ai.latency.time_in_model_inference"] = last - scheduled
    return latencies
