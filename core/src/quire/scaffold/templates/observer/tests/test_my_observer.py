"""What the observer makes of events; an engine gives it the same."""

from __future__ import annotations

import logging

import pytest
from quire_my_observer.observer import MyObserver
from quire_my_observer.options import MyObserverOptions

from quire.api.extensions import RequestView, StepReport


def test_counts_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    observer = MyObserver(MyObserverOptions(log_every=1))
    step = StepReport(0, num_rows=2, num_tokens=9, num_generated=2, seconds=0.1, num_running=2, num_waiting=0)
    request = RequestView("a", 0, 0.0, num_prompt_tokens=7, num_output_tokens=2, max_total_tokens=16)
    observer.request_added(request)
    observer.request_finished(request, "length")
    with caplog.at_level(logging.INFO, "quire"):
        observer.step_finished(step)
    assert "1 requests, 2 tokens in 1 steps" in caplog.text
