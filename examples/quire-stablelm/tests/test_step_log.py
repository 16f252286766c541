from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from quire_stablelm.step_log import StepLog
from quire_stablelm.step_log_plugin import StepLogOptions

from quire.api.extensions import RequestView, StepReport


def report(step_id: int) -> StepReport:
    return StepReport(step_id, 1, 2, 1, 0.5, 1, 0)


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_nth_step_is_written(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "new" / "steps.jsonl", every=3)
    for step_id in range(7):
        log.step_finished(report(step_id))
    assert [line["step_id"] for line in read(tmp_path / "new" / "steps.jsonl")] == [0, 3, 6]


def test_the_end_of_a_request_is_written(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "steps.jsonl", every=100)
    log.request_finished(RequestView("a", 0, 0.0, 3, 4, 9), "stop")
    [line] = read(tmp_path / "steps.jsonl")
    assert (line["event"], line["num_output_tokens"], line["finish_reason"]) == ("request", 4, "stop")


@pytest.mark.parametrize("options", [{"every": 0}, {"evry": 2}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        StepLogOptions.model_validate(options)
