"""Spans of requests."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from quire import LLM, SamplingParams
from quire.api.errors import ConfigError
from quire.api.extensions import RequestView
from quire.api.outputs import RequestMetrics
from quire_serving import otel, otel_plugin
from quire_serving.otel import RequestSpans

ENDPOINT = "http://127.0.0.1:9/v1/traces"


def spans_of(view: RequestView, reason: str) -> list:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    RequestSpans(provider.get_tracer("test"), "m").request_finished(view, reason)
    return list(exporter.get_finished_spans())


def test_a_span_has_the_requests_times_and_counts() -> None:
    now = time.monotonic()
    times = RequestMetrics(now - 10, now - 9, now - 7, now - 4, now - 3, num_cached_tokens=2)
    params = SamplingParams(max_tokens=16, temperature=0.5)
    (span,) = spans_of(RequestView("r1", 0, now - 10, 7, 4, 23, params=params, metrics=times), "stop")
    assert span.name == "llm_request" and span.kind is SpanKind.SERVER
    assert span.end_time - span.start_time == pytest.approx(7e9, rel=1e-3)
    assert span.end_time == pytest.approx((time.time() - 3) * 1e9, abs=1e9)
    attributes = dict(span.attributes)
    assert attributes["gen_ai.request.id"] == "r1"
    assert attributes["gen_ai.response.finish_reason"] == "stop"
    assert attributes["gen_ai.usage.prompt_tokens"] == 7
    assert attributes["gen_ai.usage.completion_tokens"] == 4
    assert attributes["gen_ai.request.max_tokens"] == 16
    assert attributes["quire.num_cached_tokens"] == 2
    latencies = {
        key.removeprefix("gen_ai.latency."): value for key, value in attributes.items() if ".latency." in key
    }
    assert latencies == pytest.approx(
        {
            "e2e": 7,
            "time_in_queue": 1,
            "time_to_first_token": 3,
            "time_in_model_prefill": 2,
            "time_in_model_decode": 3,
            "time_in_model_inference": 5,
        }
    )


def test_a_request_that_never_ran_and_one_that_failed() -> None:
    now = time.monotonic()
    (span,) = spans_of(RequestView("r", 0, now, 7, 0, 23, metrics=RequestMetrics(now)), "abort")
    assert [key for key in span.attributes if ".latency." in key] == ["gen_ai.latency.e2e"]
    assert span.status.status_code is StatusCode.UNSET
    (span,) = spans_of(RequestView("r", 0, now, 7, 0, 23), "error")
    assert span.status.status_code is StatusCode.ERROR


def test_without_an_endpoint_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.setitem(sys.modules, "quire_serving.otel", None)
    options = otel_plugin.OtelSettings()
    assert otel_plugin.quire_check_config(options) == []
    assert otel_plugin.quire_create_observers(None, options) == []  # type: ignore[arg-type]  # not looked at


def test_an_endpoint_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    (problem,) = otel_plugin.quire_check_config(otel_plugin.OtelSettings(endpoint=ENDPOINT))
    assert problem.is_fatal and ENDPOINT in problem.message and "opentelemetry.sdk.trace" in problem.message
    assert "quire-serving[otel]" in problem.remedy


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_engines_spans_are_sent_before_it_is_gone(collector: tuple[str, list[bytes]]) -> None:
    endpoint, bodies = collector
    options = {"endpoint": endpoint, "service_name": "mine"}
    with LLM("tiny", max_model_len=256, plugins={"options": {"otel": options}}) as llm:
        llm.generate(["Hello!", "Bye"], SamplingParams(max_tokens=3), use_tqdm=False)
    sent = [ExportTraceServiceRequest.FromString(body) for body in bodies]
    (resource,) = {entry.resource.SerializeToString() for one in sent for entry in one.resource_spans}
    assert b"mine" in resource
    spans = [s for one in sent for r in one.resource_spans for scope in r.scope_spans for s in scope.spans]
    assert len(spans) == 2
    for span in spans:
        values = {entry.key: entry.value for entry in span.attributes}
        assert values["gen_ai.response.model"].string_value == "tiny"
        assert values["gen_ai.latency.time_in_model_prefill"].double_value > 0
        assert values["gen_ai.latency.time_in_queue"].double_value >= 0
    assert not any(b"Hello" in body for body in bodies)
    assert otel_plugin._providers == {}


def test_a_collector_that_hangs_holds_up_neither_requests_nor_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(otel, "_END_TIMEOUT_S", 0.3)
    with socket.socket() as hangs:
        hangs.bind(("127.0.0.1", 0))
        hangs.listen(8)
        provider = otel.create_provider(f"http://127.0.0.1:{hangs.getsockname()[1]}/v1/traces", "test")
        spans = RequestSpans(provider.get_tracer("test"), "m")
        slowest = 0.0
        for number in range(3000):  # more than the SDK keeps
            begin = time.perf_counter()
            spans.request_finished(RequestView(str(number), 0, time.monotonic(), 7, 1, 23), "stop")
            slowest = max(slowest, time.perf_counter() - begin)
        assert slowest < 2.5  # a batch takes 3 s
        begin = time.perf_counter()
        otel.end(provider)
        assert time.perf_counter() - begin < 1.5


def test_options_that_are_wrong_are_refused_by_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    with pytest.raises(ConfigError, match="endpoint"):
        LLM("tiny", plugins={"options": {"otel": {"endpoint": "localhost:4318"}}})
