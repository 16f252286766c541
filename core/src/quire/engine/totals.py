"""Counters that go on when an engine dies and another one begins at zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quire.api.outputs import Metric

_Key = tuple[str, tuple[tuple[str, str], ...]]


class Totals:
    """The metrics of all engines so far: gauges of the last one, counters and histograms added up."""

    def __init__(self) -> None:
        self._before: dict[_Key, Metric] = {}
        self._now: dict[_Key, Metric] = {}

    def note(self, metrics: Sequence[Metric]) -> None:
        """What the engine of now says."""
        self._now = {_key(metric): metric for metric in metrics}

    def engine_died(self) -> None:
        """Keep its counters; its gauges say nothing any more."""
        self._before = {key: metric for key, metric in self._sums().items() if metric.kind != "gauge"}
        self._now = {}

    def metrics(self) -> list[Metric]:
        """All of now."""
        return list(self._sums().values())

    def _sums(self) -> dict[_Key, Metric]:
        sums = dict(self._before)
        for key, metric in self._now.items():
            before = self._before.get(key)
            sums[key] = metric if before is None else replace(metric, value=metric.value + before.value)
        return sums


def _key(metric: Metric) -> _Key:
    return metric.name, tuple(sorted(metric.labels.items()))
