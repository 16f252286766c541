"""The guards around plugins' policies and observers, without an engine."""

from __future__ import annotations

import math
import time

import pytest

from quire.api.errors import ExtensionError
from quire.api.extensions import EngineObserver, RequestView, StepReport
from quire.api.request import Request, SamplingParams
from quire.engine.guarded_policy import GuardedPolicy
from quire.engine.observers import Observers, view_of_choices
from quire.plugins.calls import PluginCalls

VIEW = RequestView("a", 0, 0.0, 3, 0, 10, params=SamplingParams(logit_bias={1: 1.0}))
REPORT = StepReport(0, 1, 1, 1, 0.0, 1, 0)


def guard(answer: object) -> GuardedPolicy:
    class Policy:
        def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]:
            return answer  # type: ignore[return-value]  # the fault

    return GuardedPolicy("mine", "plug", "plugin 'plug' (dist 1.2)", Policy(), PluginCalls(), {})


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        ((), ()),
        ((1, True, 2.5), (1, 1, 2.5)),
        ((math.inf, -math.inf), (math.inf, -math.inf)),
    ],
)
def test_a_tuple_of_numbers_is_a_key(answer, key):
    policy = guard(answer)
    assert policy.key(VIEW, 7) == key
    assert not policy.failures


@pytest.mark.parametrize("answer", [None, 3, [1], "ab", ("a",), (None,), ((1,),), (1, math.nan), (1j,)])
def test_anything_else_fails_the_request_and_gets_a_stand_in(answer, caplog):
    policy = guard(answer)
    assert policy.key(VIEW, 7) == (7,)
    [(request_id, error)] = policy.failures.items()
    assert request_id == "a" and isinstance(error, ExtensionError)
    assert "policy 'mine' of plugin 'plug' (dist 1.2) failed for request 'a': TypeError" in str(error)
    assert "plugin 'plug'" in caplog.text


def test_numbers_with_an_order_of_their_own_become_plain():
    class Odd(float):
        def __lt__(self, other: object) -> bool:
            raise RuntimeError("planted")

    key = guard((Odd(2.0),)).key(VIEW, 0)
    assert key == (2.0,) and type(key[0]) is float


class Recorder(EngineObserver):
    def __init__(self, problem: object = None) -> None:
        self.seen: list[object] = []
        self.problem = problem

    def step_finished(self, step: StepReport) -> None:
        self.seen.append(step)
        if isinstance(self.problem, BaseException):
            raise self.problem
        if self.problem is not None:
            time.sleep(self.problem)  # type: ignore[arg-type]  # seconds, here


def test_only_what_an_observer_overrides_is_called():
    idle, watching = Observers([("a", EngineObserver())], PluginCalls(), 1.0), Recorder()
    assert (idle.sees_steps, idle.sees_requests) == (False, False)
    observers = Observers([("a", watching)], PluginCalls(), 1.0)
    assert (observers.sees_steps, observers.sees_requests) == (True, False)
    late = EngineObserver()
    late.request_finished = lambda request, reason: None  # type: ignore[method-assign]  # a probe
    assert Observers([("a", late)], PluginCalls(), 1.0).sees_requests


@pytest.mark.parametrize("problem", [RuntimeError("planted"), SystemExit(3), 0.03])
def test_a_bad_observer_is_detached_and_those_after_it_are_told(problem, caplog):
    calls = PluginCalls()
    bad, good, same_plugin = Recorder(problem), Recorder(), Recorder()
    observers = Observers([("bad", bad), ("good", good), ("bad", same_plugin)], calls, 0.02)
    for _ in range(3):
        observers.step_finished(REPORT)
    assert [len(recorder.seen) for recorder in (bad, good, same_plugin)] == [1, 3, 3]
    [metric] = observers.metrics()
    assert (metric.value, metric.labels) == (1, {"plugin": "bad"})
    assert caplog.text.count("is detached") == 1
    assert calls.count("bad", "EngineObserver.step_finished").calls == 4


def test_an_interrupt_in_an_observer_passes_and_detaches_nothing():
    recorder = Recorder(KeyboardInterrupt())
    observers = Observers([("a", recorder)], PluginCalls(), 1.0)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            observers.step_finished(REPORT)
    assert not observers.metrics()


def test_each_observer_gets_parameters_of_its_own():
    class Spoiler(EngineObserver):
        def request_added(self, request: RequestView) -> None:
            request.params.temperature = 2.0
            with pytest.raises(TypeError):
                request.params.logit_bias[1] = 5.0  # type: ignore[index]  # to be refused

    class Reader(EngineObserver):
        def request_added(self, request: RequestView) -> None:
            self.temperature = request.params.temperature

    reader = Reader()
    observers = Observers([("a", Spoiler()), ("b", reader)], PluginCalls(), 1.0)
    observers.request_added(VIEW)
    assert (reader.temperature, VIEW.params.temperature) == (1.0, 1.0)
    assert not observers.metrics()


def test_a_request_s_choices_are_shown_as_one():
    requests = [Request(name, [1, 2], SamplingParams(n=2), 0, 9) for name in ("a", "a/1")]
    requests[0].output_token_ids += [1, 2]
    requests[1].output_token_ids += [3]
    requests[1].num_preemptions = 2
    view = view_of_choices(requests)
    assert (view.request_id, view.num_output_tokens, view.num_preemptions) == ("a", 3, 2)
