"""The next step is planned and submitted while one runs: order, ends that come late, failures, closing."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from quire.api.request import SamplingParams


def late(make_engine, num_blocks=24, **settings):
    engine = make_engine(num_blocks, is_late=True, **settings)
    return engine, engine._executor


def test_the_next_step_is_submitted_before_a_result_is_asked_for(make_engine, greedy, monkeypatch):
    engine, device = late(make_engine)
    schedule = engine._scheduler.schedule

    def noted():
        plan = schedule()
        if plan.rows:
            device.timeline.append(f"plan {plan.step_id} while {len(device.running)} runs")
        return plan

    monkeypatch.setattr(engine._scheduler, "schedule", noted)
    name = engine.add_request([1, 2], greedy)
    assert engine.step() == [], "the first step runs"
    while not engine.is_finished(name):
        assert engine.step() == [name]
    assert device.timeline == [
        "plan 0 while 0 runs",
        "submit 0",
        *[line for n in range(1, 5) for line in (f"plan {n} while 1 runs", f"submit {n}", f"read {n - 1}")],
        "read 4",
    ]
    assert not device.running and engine._scheduler.block_manager.usage().num_used_blocks == 0


def test_a_request_that_turns_out_to_have_ended_loses_its_row(make_engine, expected_tokens, finish_all):
    """And nothing of the row is seen: no token, no cached block that the plain order would not have."""
    figures = []
    for is_late in (False, True):
        engine = make_engine(is_late=is_late)
        expected = expected_tokens([1, 2], 9)
        stop = expected[5]
        params = SamplingParams(temperature=0.0, max_tokens=20, stop_token_ids=[stop])
        name = engine.add_request([1, 2], params)
        engine.step()
        while engine.has_unfinished:
            engine.step()
        output = engine.pop_output(name).outputs[0]
        assert output.token_ids == expected[: expected.index(stop) + 1]
        assert (output.finish_reason, output.stop_reason) == ("stop", stop)
        usage = engine._scheduler.block_manager.usage()
        assert usage.num_used_blocks == 0
        metrics = {metric.name: metric.value for metric in engine.get_metrics() if not metric.labels}
        figures.append((usage.num_cached_blocks, metrics["quire:generation_tokens"]))
        num_computed = metrics["quire:num_scheduled_tokens"]
        assert num_computed == 2 + expected.index(stop) + is_late, "one row too many was computed"
    # prompt and output make 8 tokens: with the KV of the stop token they would fill a second block
    assert figures[0] == figures[1] == (1, 6)


@pytest.mark.parametrize("is_late", [False, True])
def test_a_stop_string_ends_a_request(make_engine, expected_tokens, finish_all, is_late):
    engine = make_engine(is_late=is_late)
    text = "".join(chr(97 + token) for token in expected_tokens([3, 4], 12))
    name = engine.add_request([3, 4], SamplingParams(temperature=0.0, max_tokens=12, stop=text[4:6]))
    other = engine.add_request([5, 6], SamplingParams(temperature=0.0, max_tokens=12))
    finish_all(engine)
    assert engine.output(name).outputs[0].text == text[:4]
    assert engine.output(other).outputs[0].token_ids == expected_tokens([5, 6], 12)
    engine._scheduler.check_invariants()


def test_no_row_is_planned_behind_a_known_end(make_engine, greedy, finish_all):
    engine, device = late(make_engine)
    engine.add_request([1, 2], greedy)
    finish_all(engine)
    assert sum(line.startswith("submit") for line in device.timeline) == 5


def test_aborting_the_last_request_waits_for_its_step(make_engine, greedy):
    engine, device = late(make_engine)
    name = engine.add_request([1, 2], greedy)
    other = engine.add_request([3, 4], greedy)
    engine.step()
    engine.abort(name)
    assert device.running, "the other one goes on"
    engine.abort(other)
    assert not device.running
    assert engine._scheduler.block_manager.usage().num_used_blocks == 0
    assert not engine.has_unfinished and engine.output(other).outputs[0].token_ids == []


def test_closing_while_a_step_runs(make_engine, greedy):
    engine, device = late(make_engine)
    engine.add_request([1, 2], greedy)
    engine.step()
    assert device.running
    engine.close()
    assert device.runner.is_closed and not device.running


@pytest.mark.parametrize("fails_at", ["submit", "result"])
def test_a_failed_step_ends_its_requests_and_no_others(
    make_engine, expected_tokens, greedy, finish_all, fails_at
):
    """Step 2 has the first two, and step 3, which runs when 2 fails, the third one too."""
    engine, device = late(make_engine)
    {"submit": device.bad_submits, "result": device.bad_results}[fails_at].add(2)
    first = [engine.add_request(prompt, greedy) for prompt in ([1, 2], [3, 4])]
    for _ in range(3 if fails_at == "result" else 2):
        engine.step()
    last = engine.add_request([5, 6], greedy) if fails_at == "result" else None
    finish_all(engine)
    for name, prompt in zip(first, ([1, 2], [3, 4]), strict=True):
        output = engine.output(name)
        # what the steps before it gave is kept, that of the one running at its submission too
        assert output.outputs[0].token_ids == expected_tokens(prompt, 2)
        assert output.outputs[0].finish_reason == "error"
        assert "planted in step 2" in str(output.error)
    if last is not None:
        assert engine.output(last).outputs[0].token_ids == expected_tokens([5, 6], 5)
    assert engine._scheduler.block_manager.usage().num_used_blocks == 0
    engine._scheduler.check_invariants()
    again = engine.add_request([1, 2], greedy)
    finish_all(engine)
    assert engine.output(again).outputs[0].token_ids == expected_tokens([1, 2], 5)


def test_two_steps_that_fail_end_the_requests_of_both(make_engine, greedy, finish_all):
    engine, device = late(make_engine)
    device.bad_submits.add(2)
    device.bad_results.add(1)
    names = [engine.add_request([1, 2], greedy)]
    engine.step()
    names.append(engine.add_request([3], greedy))
    engine.step()
    engine.step()
    assert [engine.output(name).outputs[0].finish_reason for name in names] == ["error", "error"]
    assert not device.running or not engine.has_unfinished
    assert engine._scheduler.block_manager.usage().num_used_blocks == 0


REQUESTS = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.lists(st.integers(1, 4), min_size=1, max_size=14),
            "max_tokens": st.integers(1, 14),
            "stop": st.none() | st.integers(1, 25),
            "n": st.sampled_from([1, 1, 2]),
            "abort_at": st.none() | st.none() | st.integers(0, 12),
        }
    ),
    min_size=1,
    max_size=6,
)


def outcome(engine, requests, finish_all):
    names = []
    for request in requests:
        stops = None if request["stop"] is None else [request["stop"]]
        params = SamplingParams(
            temperature=0.0, max_tokens=request["max_tokens"], stop_token_ids=stops, n=request["n"]
        )
        names.append(engine.add_request(request["prompt"], params))
        engine.step()
    for step in range(13):
        engine._scheduler.check_invariants()
        for name, request in zip(names, requests, strict=True):
            if request["abort_at"] == step:
                engine.abort(name)
        if engine.has_unfinished:
            engine.step()
    finish_all(engine)
    engine._scheduler.check_invariants()
    assert engine._scheduler.block_manager.usage().num_used_blocks == 0
    return [
        [(choice.token_ids, choice.finish_reason) for choice in engine.output(name).outputs] for name in names
    ]


SEEN = {"preemptions": 0, "stops": 0, "aborts": 0, "hits": 0}


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(requests=REQUESTS, num_blocks=st.integers(8, 12), budget=st.integers(4, 12))
def run_both(make_engine, finish_all, requests, num_blocks, budget):
    plain = outcome(make_engine(num_blocks, budget=budget), requests, finish_all)
    engine = make_engine(num_blocks, budget=budget, is_late=True)
    found = outcome(engine, requests, finish_all)
    for request, expected, choices in zip(requests, plain, found, strict=True):
        for (token_ids, reason), (late_ids, late_reason) in zip(expected, choices, strict=True):
            if "abort" in (reason, late_reason):
                shared = min(len(token_ids), len(late_ids))
                assert token_ids[:shared] == late_ids[:shared]
                SEEN["aborts"] += 1
            else:
                assert (token_ids, reason) == (late_ids, late_reason), request
                SEEN["stops"] += reason == "stop"
    stats = engine._scheduler.stats()
    SEEN["preemptions"] += stats.num_preemptions
    SEEN["hits"] += stats.num_hit_tokens


def test_any_requests_give_what_the_plain_order_gives(make_engine, finish_all):
    """No block of a step that runs goes to others: see LateExecutor."""
    run_both(make_engine, finish_all)
    assert min(SEEN.values()) >= 5, SEEN
