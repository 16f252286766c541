"""The engine's figures."""

from __future__ import annotations

from collections.abc import Callable

from quire.api.outputs import Metric
from quire.api.request import SamplingParams
from quire.engine.engine import Engine


def figures(metrics: list[Metric]) -> dict[str, float]:
    return {
        metric.name.removeprefix("quire:")
        + "".join(f" {value}" for value in metric.labels.values()): metric.value
        for metric in metrics
    }


def test_tokens_per_step_are_counted_by_bucket(
    make_engine: Callable[..., Engine], finish_all: Callable[[Engine], None]
) -> None:
    engine = make_engine(budget=12)
    engine.add_request(
        [1] * 20, SamplingParams(temperature=0.0, max_tokens=3)
    )  # steps of 12, 8, 1 and 1 tokens
    finish_all(engine)
    found = figures(engine.get_metrics())
    assert [found[f"iteration_tokens_total_bucket {bound}"] for bound in ("1.0", "8.0", "16.0", "+Inf")] == [
        2,
        3,
        4,
        4,
    ]
    assert (found["iteration_tokens_total_count"], found["iteration_tokens_total_sum"]) == (4, 22)
    assert found["num_steps"] == 4 and found["num_scheduled_tokens"] == 22


def test_figures_are_none_of_a_request_that_is_over(
    make_engine: Callable[..., Engine], finish_all: Callable[[Engine], None]
) -> None:
    engine = make_engine()
    engine.add_request([1, 2, 3], SamplingParams(temperature=0.0, max_tokens=2))
    engine.step()
    assert engine.load == (1, 0) and figures(engine.get_metrics())["num_requests_running"] == 1
    finish_all(engine)
    found = figures(engine.get_metrics())
    assert engine.load == (0, 0) and found["num_requests_running"] == found["kv_cache_usage_perc"] == 0
    assert found["generation_tokens"] == 2 and found["prompt_tokens"] == 3
