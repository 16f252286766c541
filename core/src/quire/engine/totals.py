"""Counters that go on when an engine dies and another one begins at zero."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from quire.api.outputs import Metric
from quire.api.request import FinishReason

_Key = tuple[str, tuple[tuple[str, str], ...]]


class Totals:
    """The metrics of all engines so far: gauges of the last one, counters and histograms added up."""

    def __init__(self) -> None:
        self._before: dict[_Key, Metric] = {}
        self._now: dict[_Key, Metric] = {}

    def note(self, metrics: Sequence[Metric]) -> None:
        """What the engine of now says."""
        self._now = {_key(metric): metric for metric in metrics}

    def engine_died(self, untold: Sequence[Metric] = ()) -> None:
        """Keep its counters; its gauges say nothing any more.

        Args:
            untold: what it had counted and not told.
        """
        sums = _added(self._sums(), untold)
        self._before = {key: metric for key, metric in sums.items() if metric.kind != "gauge"}
        self._now = {}

    def metrics(self, others: Sequence[Metric] = ()) -> list[Metric]:
        """All of now, with counters that no engine counted."""
        return list(_added(self._sums(), others).values())

    def _sums(self) -> dict[_Key, Metric]:
        return _added(self._before, self._now.values())


def ended_requests(counts: Mapping[str, int]) -> list[Metric]:
    """The counter of requests that ended, from 0 for each reason."""
    name, text = "quire:request_success", "requests ended"
    return [
        Metric(name, counts.get(reason.value, 0), "counter", text, {"finished_reason": reason.value})
        for reason in FinishReason
    ]


def _added(sums: Mapping[_Key, Metric], metrics: Iterable[Metric]) -> dict[_Key, Metric]:
    """Both, with those of one name and labels added up."""
    added = dict(sums)
    for metric in metrics:
        before = sums.get(_key(metric))
        added[_key(metric)] = metric if before is None else replace(before, value=metric.value + before.value)
    return added


def _key(metric: Metric) -> _Key:
    return metric.name, tuple(sorted(metric.labels.items()))
