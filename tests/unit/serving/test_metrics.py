"""What the server measures, and how it says so."""

from __future__ import annotations

import asyncio
import time

import pytest
from fake_engine import FakeEngine, deltas_of
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from serving_app import FakeServer
from starlette.testclient import TestClient

from quire import SamplingParams
from quire.api.client import EngineRequest
from quire.api.errors import EngineClosedError, StepError
from quire.api.outputs import ChoiceDelta, Metric, OutputDelta, RequestMetrics
from quire_serving import metrics as metrics_module
from quire_serving import request_metrics
from quire_serving.histogram import one_two_five
from quire_serving.metrics import ServerMetrics
from quire_serving.routes import metrics as route


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(request_metrics, "time", made)
    return made


def request_of(**params: object) -> EngineRequest:
    return EngineRequest("a", [1, 2, 3], SamplingParams(**{"max_tokens": 7, **params}))


def samples_of(metrics: ServerMetrics) -> dict[str, float]:
    """Samples by name and labels, the model's left out: 'quire:x_total{reason="y"}' to its value."""
    text = asyncio.run(metrics.render()).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert (sample.labels.pop("model_name"), sample.labels.pop("engine")) == ("m", "0")
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def delta(*choices: tuple[int, int], finished: bool = False, **rest: object) -> OutputDelta:
    """A delta of (index, number of tokens)."""
    made = [ChoiceDelta(index, "", [5] * count) for index, count in choices]
    return OutputDelta("a", made, finished=finished, **rest)


def test_histogram_buckets_are_inclusive_and_cumulative() -> None:
    metrics = ServerMetrics(FakeEngine(), "m")
    for value in (0.001, 0.0011, 3000.0):
        metrics.requests.first_token.observe(value)
    samples = samples_of(metrics)
    name = "quire:time_to_first_token_seconds"
    assert samples[f'{name}_bucket{{le="0.001"}}'] == 1
    assert samples[f'{name}_bucket{{le="0.005"}}'] == 2
    assert samples[f'{name}_bucket{{le="2560.0"}}'] == 2
    assert samples[f'{name}_bucket{{le="+Inf"}}'] == samples[f"{name}_count"] == 3
    assert samples[f"{name}_sum"] == pytest.approx(3000.0021)


def test_length_buckets_end_at_the_limit() -> None:
    assert one_two_five(100) == [1, 2, 5, 10, 20, 50, 100]
    assert one_two_five(99) == [1, 2, 5, 10, 20, 50]


def test_a_request_from_start_to_end(clock: Clock) -> None:
    metrics = ServerMetrics(FakeEngine(), "m")
    timer = metrics.started(request_of())
    clock.now += 0.5
    timer.delta(delta((0, 1)))
    clock.now += 0.25
    timer.delta(delta((0, 2)))
    clock.now += 0.5
    times = RequestMetrics(10.0, 10.25, first_token_s=10.5, last_token_s=11.25, num_cached_tokens=2)
    timer.delta(delta((0, 1), finished=True, metrics=times))
    timer.close()
    samples = samples_of(metrics)
    sums = {
        "time_to_first_token_seconds": 0.5,
        "inter_token_latency_seconds": 0.75,
        "request_time_per_output_token_seconds": 0.25,
        "e2e_request_latency_seconds": 1.25,
        "request_queue_time_seconds": 0.25,
        "request_prefill_time_seconds": 0.25,
        "request_decode_time_seconds": 0.75,
        "request_inference_time_seconds": 1.0,
        "request_prompt_tokens": 3,
        "request_generation_tokens": 4,
        "request_max_num_generation_tokens": 4,
        "request_prefill_kv_computed_tokens": 1,
        "request_params_n": 1,
        "request_params_max_tokens": 7,
    }
    assert {name: samples[f"quire:{name}_sum"] for name in sums} == pytest.approx(sums)
    counts = {name: samples[f"quire:{name}_count"] for name in sums}
    assert counts == {**dict.fromkeys(sums, 1), "inter_token_latency_seconds": 2}
    assert samples["quire:requests_abandoned_total"] == 0
    assert (timer.num_prompt, timer.num_output, timer.first_token_s) == (3, 4, 0.5)


def test_choices_are_timed_apart(clock: Clock) -> None:
    metrics = ServerMetrics(FakeEngine(), "m")
    timer = metrics.started(request_of(n=2))
    timer.delta(delta((0, 1)))
    clock.now += 1
    timer.delta(delta((1, 1)))  # its first token: no gap
    clock.now += 1
    timer.delta(delta((0, 1), (1, 1)))
    timer.delta(delta((0, 0), (1, 0), finished=True))
    samples = samples_of(metrics)
    assert samples["quire:inter_token_latency_seconds_sum"] == 3  # 2 of choice 0, 1 of choice 1
    assert samples["quire:inter_token_latency_seconds_count"] == 2
    assert samples["quire:time_to_first_token_seconds_count"] == 1
    assert samples["quire:request_generation_tokens_sum"] == 4
    assert samples["quire:request_max_num_generation_tokens_sum"] == 2


def test_requests_that_were_left_or_failed_have_no_latency() -> None:
    metrics = ServerMetrics(FakeEngine(), "m")
    left = metrics.started(request_of())
    left.delta(delta((0, 1)))
    left.close()
    left.close()
    metrics.started(request_of()).delta(delta((0, 0), finished=True, error=StepError("boom")))
    samples = samples_of(metrics)
    assert samples["quire:requests_abandoned_total"] == 1
    assert samples["quire:e2e_request_latency_seconds_count"] == 0
    assert samples["quire:request_params_n_count"] == 2


def test_the_engines_figures_get_prefix_suffix_and_labels() -> None:
    engine = FakeEngine()
    engine.metrics = [
        Metric("quire:prompt_tokens", 6, "counter", "prompt tokens"),
        Metric("quire:kv_cache_usage_perc", 0.25, "gauge"),
        Metric("quire:request_success", 2, "counter", "", {"finished_reason": "stop"}),
        Metric("quire:request_success", 1, "counter", "", {"finished_reason": "length"}),
        Metric("quire:plugin_seconds", 0.5, "counter", "", {"plugin": "p", "point": 'odd "name"\n'}),
    ]
    metrics = ServerMetrics(engine, "m", "vllm")
    samples = samples_of(metrics)
    assert samples["vllm:prompt_tokens_total"] == 6
    assert samples["vllm:kv_cache_usage_perc"] == 0.25
    assert samples['vllm:request_success_total{finished_reason="stop"}'] == 2
    assert samples['vllm:request_success_total{finished_reason="length"}'] == 1
    assert samples['vllm:plugin_seconds_total{plugin="p",point="odd "name"\n"}'] == 0.5
    assert samples["vllm:engine_up"] == 1
    assert not [name for name in samples if not name.startswith("vllm:")]
    text = asyncio.run(metrics.render()).decode()
    assert text.count("# TYPE vllm:request_success_total counter\n") == 1


def test_without_an_engine_the_servers_own_figures_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead(FakeEngine):
        async def get_metrics(self) -> list[Metric]:
            raise EngineClosedError("gone")

    class Hung(FakeEngine):
        async def get_metrics(self) -> list[Metric]:
            await asyncio.Event().wait()
            return []

    monkeypatch.setattr(metrics_module, "ENGINE_TIMEOUT_S", 0.02)
    for kind in (Dead, Hung):
        engine = kind()
        engine.num_waiting = 3
        metrics = ServerMetrics(engine, "m")
        metrics.rejected("queue_full")
        samples = samples_of(metrics)
        assert samples["quire:engine_up"] == 0
        assert samples["quire:num_requests_waiting"] == 3
        assert samples['quire:admission_rejections_total{reason="queue_full"}'] == 1


def test_an_engine_that_is_stuck_is_not_up() -> None:
    engine = FakeEngine()
    engine.is_ready = False
    assert samples_of(ServerMetrics(engine, "m"))["quire:engine_up"] == 0


def test_http_answers_and_methods_that_are_none() -> None:
    metrics = ServerMetrics(FakeEngine(), "m")
    metrics.http("GET", "/health", 200, 0.002)
    metrics.http("GET", "/health", 200, 0.2)
    metrics.http("BREW", "/health", 405, 0.001)
    metrics.http("MASH", "/health", 405, 0.001)
    samples = samples_of(metrics)
    assert samples['quire:http_requests_total{method="GET",route="/health",status="200"}'] == 2
    assert samples['quire:http_requests_total{method="other",route="/health",status="405"}'] == 2
    name = "quire:http_request_duration_seconds_count"
    assert samples[f'{name}{{method="GET",route="/health"}}'] == 2


def test_two_servers_in_a_process_share_nothing() -> None:
    first, second = ServerMetrics(FakeEngine(), "m"), ServerMetrics(FakeEngine(), "m")
    first.rejected("queue_full")
    assert 'quire:admission_rejections_total{reason="queue_full"}' not in samples_of(second)


def test_the_route_answers_with_text() -> None:
    class State:
        metrics = ServerMetrics(FakeEngine(), "m")

    app = FastAPI()
    app.include_router(route.router)
    app.state.server = State()
    answer = TestClient(app).get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "# TYPE quire:e2e_request_latency_seconds histogram\n" in answer.text


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text;version=1.0.0", "text/plain", "x;version=y", ""]
)
def test_every_client_gets_the_text_format(accept: str) -> None:
    answer = FakeServer.of().client.get("/metrics", headers={"accept": accept})
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert families["quire:http_requests"].type == "counter"
    assert families["quire:e2e_request_latency_seconds"].type == "histogram"
    assert not [
        name for name, family in families.items() if family.type == "unknown" or not family.documentation
    ]


def test_the_caches_settings_are_labels() -> None:
    engine = FakeEngine()
    samples = samples_of(ServerMetrics(engine, "m"))
    [name] = [name for name in samples if name.startswith("quire:cache_config_info")]
    assert 'block_size="16"' in name and 'num_gpu_blocks="64"' in name and samples[name] == 1


def test_the_plugins_that_the_server_calls_stand_beside_the_engines() -> None:
    engine = FakeEngine()
    labels = {"plugin": "a", "point": "EngineObserver.step_finished"}
    engine.metrics = [Metric("quire:plugin_calls", 2, "counter", "calls", labels)]
    own = [Metric("quire:plugin_calls", 3, "counter", "calls", {"plugin": "a", "point": "TextParser.push"})]
    metrics = ServerMetrics(engine, "m", plugins=lambda: own)
    samples = samples_of(metrics)
    assert samples['quire:plugin_calls_total{plugin="a",point="EngineObserver.step_finished"}'] == 2
    assert samples['quire:plugin_calls_total{plugin="a",point="TextParser.push"}'] == 3
    assert asyncio.run(metrics.render()).decode().count("# TYPE quire:plugin_calls_total") == 1


def test_a_delta_costs_microseconds() -> None:
    """3 us is the bound; 10 leaves room for a busy machine."""
    timer = ServerMetrics(FakeEngine(), "m").started(request_of())
    step = deltas_of(request_of(), ["x", "y"])[0]
    best = min(_seconds(timer.delta, step) for _ in range(5))
    assert best < 10e-6


def _seconds(call: object, *values: object) -> float:
    begin = time.perf_counter()
    for _ in range(2000):
        call(*values)  # type: ignore[operator]  # a callable
    return (time.perf_counter() - begin) / 2000
