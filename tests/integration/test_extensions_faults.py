"""Every extension point misbehaves in every way, at its first and at a later call: what that costs, and whom."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from equivalence import values
from extension_plugins import Fault, faulty_plugin, forced, open_llm

from quire import LLM, SamplingParams
from quire.api.errors import ExtensionError
from quire.api.hookspecs import EXTENSION_POINTS
from quire.testing.tiny_models import write_tiny_llama

VICTIM = "victim"
PROMPT = list(range(3, 24))
OTHERS = [[index + 30, *range(5, 9 + index)] for index in range(8)]
PARAMS = [
    SamplingParams(temperature=float(index % 2), seed=index, max_tokens=8, ignore_eos=True)
    for index in range(8)
]
OWN = {
    "temperature": 1.0,
    "seed": 5,
    "max_tokens": 8,
    "ignore_eos": True,
    "logit_bias": {3: 1.0},
    "extra_args": {"history": {"offset": 3}},
}
KINDS = ("exception", "exit", "wrong type", "none", "mutation", "sleep")
LATER = {
    "LogitsProcessorFactory.for_request": 2,
    "SchedulingPolicy.key": 2,
}  # once when added, once when it runs
RAISES = ("exception", "exit")
TIME_LIMIT_S = 0.05
CASES = [
    (point, kind, at)
    for point, kind in itertools.product(EXTENSION_POINTS, KINDS)
    for at in (1, LATER.get(point, 4))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"), max_position_embeddings=128)


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    with open_llm(folder) as llm:
        outputs = llm.generate(OTHERS, PARAMS, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]


def open_faulty(folder: Path, fault: Fault) -> LLM:
    return open_llm(
        folder,
        faulty_plugin(fault, VICTIM),
        scheduling_policy="faulty",
        plugins={"observer_time_limit_s": TIME_LIMIT_S},
    )


def generate(llm: LLM) -> dict[str, object]:
    """The victim among eight neighbours; outputs by id."""
    engine = llm.engine
    names = []
    for index, (prompt, params) in enumerate(zip(OTHERS, PARAMS, strict=True)):
        if index == 4:
            # for mypy: fields by name
            names.append(engine.add_request(PROMPT, SamplingParams(**OWN), request_id=VICTIM))  # type: ignore[arg-type]
        names.append(engine.add_request(prompt, params, request_id=f"other-{index}"))
    for _ in range(100):
        if all(engine.is_finished(name) for name in names):
            break
        changed = engine.step()
        assert len(set(changed)) == len(changed)
    return {name: engine.pop_output(name) for name in names}


@pytest.mark.parametrize(("point", "kind", "at"), CASES)
def test_a_fault_costs_what_the_table_says(
    folder: Path, expected: list[list[int]], caplog: pytest.LogCaptureFixture, point: str, kind: str, at: int
) -> None:
    fault = Fault(point, kind, at)
    with open_faulty(folder, fault) as llm:
        outputs = generate(llm)
        assert fault.num_calls >= at, "the fault was never planted"
        for index, token_ids in enumerate(expected):
            neighbour = outputs[f"other-{index}"]
            assert neighbour.outputs[0].token_ids == token_ids and neighbour.error is None
        victim = outputs[VICTIM]
        is_refusal_of_none = kind == "none" and point != "LogitsProcessorFactory.for_request"
        is_bad = kind in (*RAISES, "wrong type") or is_refusal_of_none
        if EXTENSION_POINTS[point] == "request" and is_bad:
            assert victim.outputs[0].finish_reason == "error"
            assert isinstance(victim.error, ExtensionError)
            assert "plugin 'faulty' (given by the program" in str(victim.error)
            assert "plugin 'faulty'" in caplog.text
            count = at - 1 if point == "LogitsProcessor.__call__" else 0
            assert victim.outputs[0].token_ids == forced(PROMPT, count, 3)
        else:
            assert victim.error is None and victim.outputs[0].finish_reason == "length"
            is_spoilt = (kind == "none" and EXTENSION_POINTS[point] == "request") or (
                (point, kind) == ("LogitsProcessor.__call__", "mutation")
            )
            if not is_spoilt:
                assert victim.outputs[0].token_ids == forced(PROMPT, 8, 3)
        check_observers(llm, fault, caplog)
        fault.kind = ""
        again = generate(llm)
        assert again[VICTIM].outputs[0].token_ids == forced(PROMPT, 8, 3)
        assert [again[f"other-{index}"].outputs[0].token_ids for index in range(8)] == expected
        llm.engine._scheduler.check_invariants()


def check_observers(llm: LLM, fault: Fault, caplog: pytest.LogCaptureFixture) -> None:
    """Detached after an exception or a slow call, logged and counted once; else not."""
    is_bad = EXTENSION_POINTS[fault.point] == "observer" and fault.kind in (*RAISES, "sleep")
    detached = [metric for metric in llm.get_metrics() if metric.name == "quire:observers_detached"]
    assert [metric.value for metric in detached] == ([1] if is_bad else [])
    records = [record for record in caplog.records if "detached" in record.getMessage()]
    assert len(records) == (1 if is_bad else 0)
    if is_bad:
        assert "plugin 'faulty'" in records[0].getMessage()
        assert fault.num_calls == fault.at, "it was called again"
    errors = {
        metric.labels["point"]: metric.value
        for metric in llm.get_metrics()
        if metric.name == "quire:plugin_errors" and metric.labels["plugin"] == "faulty"
    }
    assert errors.get(fault.point, 0) == (1 if fault.kind in RAISES else 0)


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("point", EXTENSION_POINTS)
def test_an_interrupt_is_no_fault_of_the_plugin(
    folder: Path, expected: list[list[int]], point: str, at: int
) -> None:
    fault = Fault(point, "interrupt", at)
    with open_faulty(folder, fault) as llm:
        with pytest.raises(KeyboardInterrupt):
            generate(llm)
        for name in llm.engine._book.ids():
            llm.engine.discard(name)
        llm.engine._scheduler.check_invariants()
        assert not llm.engine.has_unfinished and not llm.engine._failures
        again = generate(llm)
        assert all(output.error is None for output in again.values())
        assert again[VICTIM].outputs[0].token_ids == forced(PROMPT, 8, 3)
        assert [again[f"other-{index}"].outputs[0].token_ids for index in range(8)] == expected
        assert not [metric for metric in llm.get_metrics() if metric.name == "quire:observers_detached"]


def test_an_interrupt_in_request_added_takes_the_request_back(folder: Path) -> None:
    with open_faulty(folder, Fault("EngineObserver.request_added", "interrupt", 1)) as llm:
        with pytest.raises(KeyboardInterrupt):
            llm.engine.add_request(PROMPT, PARAMS[0])
        assert not llm.engine._book.ids() and not llm.engine.has_unfinished


def test_generate_returns_the_neighbours_and_the_error(folder: Path, expected: list[list[int]]) -> None:
    for at, point in ((1, "LogitsProcessorFactory.for_request"), (2, "LogitsProcessorFactory.for_request")):
        with open_faulty(folder, Fault(point, "exception", at)) as llm:
            outputs = llm.generate([*OTHERS, PROMPT], [*PARAMS, SamplingParams(**OWN, n=2)], use_tqdm=False)
            assert [output.outputs[0].token_ids for output in outputs[:8]] == expected
            last = outputs[8]
            assert isinstance(last.error, ExtensionError)
            reasons = [choice.finish_reason for choice in last.outputs]
            assert reasons == (["error", "error"] if at == 1 else ["error", "length"])


def test_a_policy_that_fails_for_all_ends_all_and_the_engine_lives(folder: Path) -> None:
    fault = Fault("SchedulingPolicy.key", "exception", 1)
    with open_faulty(folder, fault) as llm:
        [output] = llm.generate([PROMPT], SamplingParams(max_tokens=2), use_tqdm=False)
        assert output.error is None  # the victim has another id
        llm.engine.add_request(PROMPT, SamplingParams(max_tokens=2), request_id=VICTIM)
        num_steps = values(llm.get_metrics())["num_steps"]
        assert llm.engine.step() == [VICTIM]
        assert values(llm.get_metrics())["num_steps"] == num_steps, "it was planned"
        assert not llm.engine.has_unfinished
        assert llm.engine.output(VICTIM).outputs[0].finish_reason == "error"
