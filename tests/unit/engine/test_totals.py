"""Figures over several engines."""

from __future__ import annotations

from quire.api.outputs import Metric
from quire.engine.totals import Totals


def test_counters_and_histograms_go_on_and_gauges_do_not() -> None:
    figures = [
        Metric("quire:num_steps", 3, "counter"),
        Metric("quire:iteration_tokens_total_bucket", 2, "histogram", "", {"le": "8.0"}),
        Metric("quire:num_requests_running", 5, "gauge"),
    ]
    totals = Totals()
    totals.note(figures)
    totals.engine_died()
    assert {each.name: each.value for each in totals.metrics()} == {
        "quire:num_steps": 3,
        "quire:iteration_tokens_total_bucket": 2,
    }
    totals.note(figures)
    assert [each.value for each in totals.metrics()] == [6, 4, 5]
