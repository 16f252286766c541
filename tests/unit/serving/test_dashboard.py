"""What a real server's metrics are: all documented, monotone under load, and enough for the dashboard."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from quire import SamplingParams
from quire.api.client import EngineRequest
from quire.api.config import EngineConfig
from quire.engine.local_client import LocalEngine
from quire_serving.metrics import ServerMetrics

DEPLOY = Path(__file__).parents[3] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "quire-dashboard.json"
VLLM_NAMES = re.findall(
    r"\w+",
    """
num_requests_running num_requests_waiting kv_cache_usage_perc cache_config_info
prefix_cache_queries_total prefix_cache_hits_total num_preemptions_total request_success_total
prompt_tokens_total generation_tokens_total admission_rejections_total
spec_decode_num_drafts_total spec_decode_num_draft_tokens_total spec_decode_num_accepted_tokens_total
spec_decode_num_accepted_tokens_per_pos_total
iteration_tokens_total_bucket request_prompt_tokens_bucket request_generation_tokens_bucket
request_max_num_generation_tokens_bucket request_params_n_bucket request_params_max_tokens_bucket
request_prefill_kv_computed_tokens_bucket time_to_first_token_seconds_bucket inter_token_latency_seconds_bucket
request_time_per_output_token_seconds_bucket e2e_request_latency_seconds_bucket request_queue_time_seconds_bucket
request_prefill_time_seconds_bucket request_decode_time_seconds_bucket request_inference_time_seconds_bucket
""",
)
DRAFTS = {"method": "ngram", "num_speculative_tokens": 3}


async def serve_a_little() -> tuple[dict[str, bytes], list[bytes]]:
    """By prefix, the text after a few requests and a refusal; and texts while requests run."""
    settings = {"model": "tiny", "max_model_len": 256, "speculative_config": DRAFTS}
    engine = await LocalEngine.start(EngineConfig.from_keywords(settings))
    texts = {}
    for prefix in ("quire", "vllm"):
        metrics = ServerMetrics(engine, "tiny", prefix)
        for number in range(2):
            await stream(engine, metrics, f"{prefix}-{number}", 12)
        metrics.rejected("queue_full")
        metrics.http("POST", "/v1/completions", 200, 0.5)
        texts[prefix] = await metrics.render()
    streams = [asyncio.create_task(stream(engine, metrics, f"load-{number}", 60)) for number in range(12)]
    scrapes = [await metrics.render()]
    while not all(task.done() for task in streams):
        await asyncio.sleep(0.01)
        scrapes.append(await metrics.render())
    await engine.close()
    return texts, scrapes


async def stream(engine: LocalEngine, metrics: ServerMetrics, name: str, max_tokens: int) -> None:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    request = EngineRequest(name, [1, 2, 3, 4] * 8, params)
    timer = metrics.started(request)
    async for delta in engine.stream(request):
        timer.delta(delta)


@pytest.fixture(scope="module")
def served() -> tuple[dict[str, bytes], list[bytes]]:
    return asyncio.run(serve_a_little())


@pytest.fixture(scope="module")
def texts(served: tuple[dict[str, bytes], list[bytes]]) -> dict[str, bytes]:
    return served[0]


@pytest.fixture(scope="module")
def dashboard() -> dict[str, object]:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def queries(dashboard: dict) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def labels_by_sample(text: bytes) -> dict[str, set[str]]:
    """The labels of each sample's name."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("prefix", ["quire", "vllm"])
def test_every_name_and_label_of_a_query_exists(dashboard: dict, texts: dict, prefix: str) -> None:
    labels = labels_by_sample(texts[prefix])
    asked = 0
    for query in queries(dashboard):
        rendered = query.replace("quire:", f"{prefix}:")  # what the documented sed does
        names = re.findall(rf"\b{prefix}:\w+", rendered)
        assert names, query
        for name in names:
            assert name in labels, f"{name} of {rendered}"
            used = {label for group in re.findall(r"by \(([^)]*)\)", rendered) for label in group.split(", ")}
            used |= set(re.findall(r"(\w+)=~?\"", rendered))
            assert used <= labels[name], f"{used - labels[name]} in {rendered}"
            asked += 1
    assert asked > 50


def test_counters_and_histograms_only_grow_under_load(served: tuple[dict[str, bytes], list[bytes]]) -> None:
    before: dict[tuple[str, str], float] = {}
    grown = set()
    for text in served[1]:
        for family in text_string_to_metric_families(text.decode()):
            if family.type == "gauge":
                continue
            for sample in family.samples:
                key = (sample.name, str(sample.labels))
                assert sample.value >= before.get(key, 0.0), key
                grown |= {sample.name} if sample.value > before.get(key, sample.value) else set()
                before[key] = sample.value
            if family.type == "histogram":
                buckets = [each for each in family.samples if each.name.endswith("_bucket")]
                counts = [each.value for each in family.samples if each.name.endswith("_count")]
                ends = [each.value for each in buckets if each.labels["le"] == "+Inf"]
                assert counts == ends, family.name
    assert {"vllm:generation_tokens_total", "vllm:iteration_tokens_total_bucket"} <= grown
    assert {"vllm:inter_token_latency_seconds_bucket", "vllm:e2e_request_latency_seconds_sum"} <= grown


def test_the_names_that_vllm_documents_are_there(texts: dict[str, bytes]) -> None:
    """Those of its design/metrics page, but for sampled block lifetimes, sleep, LoRA and multi-modal caches."""
    names = set(labels_by_sample(texts["vllm"]))
    for name in VLLM_NAMES:
        assert f"vllm:{name}" in names, name
    assert all({"model_name", "engine"} <= labels for labels in labels_by_sample(texts["vllm"]).values())


def test_the_page_lists_what_there_is(texts: dict[str, bytes]) -> None:
    page = (DEPLOY.parent / "docs" / "how-to" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`quire:.*?) \|", page, re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(quire:\w+)`", row)]
    families = [*text_string_to_metric_families(texts["quire"].decode())]
    real = {f"{each.name}_total" if each.type == "counter" else each.name for each in families}
    assert len(listed) == len(set(listed)), "twice"
    assert set(listed) - real == {"quire:observers_detached_total"}, "listed, but not there"
    assert real <= set(listed), "there, but not listed"


def test_counters_are_asked_for_rates_and_quantiles_for_buckets(dashboard: dict) -> None:
    for query in queries(dashboard):
        assert query.count("(") == query.count(")") and query.count("{") == query.count("}"), query
        if "histogram_quantile" in query:
            assert "_bucket{" in query and "by (le" in query, query
        for name in re.findall(r"quire:\w+_total", query):
            assert f"rate({name}" in query or name.endswith("restarts_total"), query


def test_legends_name_labels_that_the_query_keeps(dashboard: dict) -> None:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            kept = {
                label
                for group in re.findall(r"by \(([^)]*)\)", target["expr"])
                for label in group.split(", ")
            }
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert named <= kept, target


def test_panels_have_their_own_ids_and_places(dashboard: dict) -> None:
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (column, line)
            for column in range(place["x"], place["x"] + place["w"])
            for line in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells


def test_a_request_spent_its_time_in_stages(texts: dict) -> None:
    """The first step belongs to the prefill, not to the queue."""
    lines = dict(line.rsplit(" ", 1) for line in texts["quire"].decode().splitlines() if line[:1] != "#")
    total = {
        stage: float(lines[f'quire:request_{stage}_time_seconds_sum{{engine="0",model_name="tiny"}}'])
        for stage in ("queue", "prefill", "decode", "inference")
    }
    assert total["prefill"] > 0 and total["decode"] > 0 and total["queue"] >= 0
    assert total["inference"] == pytest.approx(total["prefill"] + total["decode"])


def test_prometheus_scrapes_the_servers_route() -> None:
    settings = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = settings["scrape_configs"]
    assert job["metrics_path"] == "/metrics" and job["static_configs"][0]["targets"]
