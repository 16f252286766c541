"""An exception at any line of a step: the engine goes on, its books agree, later tokens are right."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import quire
from quire.api.errors import PromptError, QuireError, StepError
from quire.api.request import SamplingParams
from quire.engine.engine import Engine

ROOT = Path(quire.__file__).parent
TRACED = tuple(str(ROOT / name) for name in ("scheduling", "kvcache", "engine"))
PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 6, 7, 8, 10], [11, 12]]
CHOICES = (2, 1, 1)


class Interrupter:
    """Raises at the `at`-th line that runs in the traced folders, once; counts lines, and each file's first."""

    def __init__(self, at: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.num_lines = 0
        self.where = ""
        self.first_lines: dict[str, int] = {}
        self._at = at
        self._error = error

    @contextmanager
    def watch(self) -> Iterator[None]:
        previous = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(previous)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        return self._step if frame.f_code.co_filename.startswith(TRACED) else None

    def _step(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        if event == "line":
            self.num_lines += 1
            self.first_lines.setdefault(frame.f_code.co_filename, self.num_lines)
            if self.num_lines == self._at:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise self._error(f"planted at {self.where}")
        return self._step


def generate(engine: Engine, interrupter: Interrupter | None = None) -> list[list[list[int]]]:
    """As LLM.generate does; whatever interrupts it, its requests are discarded. Only steps are watched."""
    names = []
    for prompt, n in zip(PROMPTS, CHOICES, strict=True):
        names.append(engine.add_request(prompt, SamplingParams(n=n, max_tokens=9, seed=0)))
    try:
        while not all(engine.is_finished(name) for name in names):
            if interrupter is None:
                engine.step()
                continue
            with interrupter.watch():
                engine.step()
        return [[choice.token_ids for choice in engine.output(name).outputs] for name in names]
    finally:
        for name in names:
            engine.discard(name)


def assert_as_new(engine: Engine, expected: list[list[list[int]]], where: str) -> None:
    scheduler = engine._scheduler
    scheduler.check_invariants()
    assert not engine.has_unfinished, where
    assert scheduler.block_manager.usage().num_used_blocks == 0, where
    book = engine._book
    assert not book._trackers and not book._owners and not book._finished, where
    assert generate(engine) == expected, where
    scheduler.check_invariants()
    assert scheduler.block_manager.usage().num_used_blocks == 0, where


def scarce(make_engine: Callable[..., Engine], has_plugins: bool = False, is_late: bool = False) -> Engine:
    """Few enough blocks that requests are preempted, and a budget that cuts prompts in parts."""
    return make_engine(10, budget=7, has_plugins=has_plugins, is_late=is_late)


@pytest.mark.parametrize(("has_plugins", "is_late"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_at_any_line_of_a_step(make_engine, error, has_plugins, is_late):
    plain = scarce(make_engine, has_plugins, is_late)
    counter = Interrupter(-1)
    expected = generate(plain, counter)
    stats = plain._scheduler.stats()
    assert stats.num_preemptions and stats.num_forks and stats.num_hit_tokens
    stride = counter.num_lines // 150  # every line was tried once, and held
    reached = set()
    for at in (*counter.first_lines.values(), *range(1, counter.num_lines, stride)):
        engine, interrupter = scarce(make_engine, has_plugins, is_late), Interrupter(at, error)
        if error is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):
                generate(engine, interrupter)
        else:
            with suppress(error):  # raised on only after the step's work
                generate(engine, interrupter)
        assert interrupter.where, at
        reached.add(interrupter.where.split(":")[0])
        assert_as_new(engine, expected, interrupter.where)
    assert {"scheduler.py", "planner.py", "tracked.py", "block_manager.py", "outputs.py"} <= reached
    assert not has_plugins or {"guarded_policy.py", "observers.py"} <= reached


@pytest.mark.parametrize("has_plugins", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_at_any_line_of_queueing(make_engine, error, has_plugins):
    engine = scarce(make_engine, has_plugins)
    expected = generate(engine)
    params = SamplingParams(n=3, max_tokens=2)
    counter = Interrupter(-1)
    with counter.watch():
        engine.add_request([1, 2, 3], params, request_id="a")
    engine.discard("a")
    for at in range(1, counter.num_lines, 3):
        interrupter = Interrupter(at, error)
        is_guarded = has_plugins and error is ValueError  # then it may be a plugin's, and ends a request
        with suppress(error) if is_guarded else pytest.raises(error), interrupter.watch():
            engine.add_request([1, 2, 3], params, request_id="a")
        if is_guarded and at > 0.9 * counter.num_lines and not interrupter.where:
            break  # the observer has failed, and is called no more
        assert interrupter.where
        engine.discard("a")
        assert_as_new(engine, expected, interrupter.where)


def planted(*args: object) -> None:
    raise IndexError("planted")


def interrupt(*args: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("call", ["abort", "reset_prefix_cache"])
def test_an_interrupted_abort_or_reset_leaves_nothing_half_done(make_engine, greedy, monkeypatch, call):
    engine = scarce(make_engine)
    expected = generate(engine)
    name = engine.add_request(PROMPTS[0], greedy)
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine._scheduler.block_manager._pool, "release", interrupt)
        patch.setattr(engine._scheduler.block_manager._pool, "drop_digest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.abort(name) if call == "abort" else engine.reset_prefix_cache()
    assert engine.output(name).outputs[0].finish_reason == "abort"
    engine.discard(name)
    assert_as_new(engine, expected, call)


def test_a_failure_in_taking_a_result_in_is_shown_by_every_output(
    make_engine, expected_tokens, greedy, monkeypatch, caplog
):
    engine = make_engine(budget=4)
    running = engine.add_request([1, 2, 3, 4], greedy)
    waiting = engine.add_request([5, 6], greedy)
    done = engine.add_request([7], SamplingParams(max_tokens=1), request_id="done")
    engine.abort(done)
    with monkeypatch.context() as patch:
        patch.setattr(engine._scheduler.block_manager, "confirm", planted)
        changed = engine.step()
    assert {running, waiting} <= set(changed)
    for name in (running, waiting):
        output = engine.output(name)
        assert output.finished and output.outputs[0].finish_reason == "error"
        assert isinstance(output.error, StepError) and isinstance(output.error.__cause__, IndexError)
    assert engine.output(done).error is None
    assert "the prefix cache is dropped" in caplog.text and "IndexError" in caplog.text
    finished = {
        metric.labels["finished_reason"]: metric.value
        for metric in engine.get_metrics()
        if metric.name == "quire:request_success"
    }
    assert finished == {"abort": 1, "error": 2, "stop": 0, "length": 0}


def test_a_choice_that_ended_unseen_is_not_shown_as_complete(make_engine, monkeypatch):
    """The scheduler has ended the request, but its last token never reached the output."""
    engine = make_engine()
    name = engine.add_request([1, 2], SamplingParams(max_tokens=1))
    monkeypatch.setattr(engine._book.require(name), "apply", planted)
    assert engine.step() == [name]
    output = engine.output(name)
    assert (output.outputs[0].token_ids, output.outputs[0].finish_reason) == ([], "error")
    assert isinstance(output.error, StepError)


def test_a_reset_forgets_what_was_to_fail(make_engine, expected_tokens, greedy, monkeypatch):
    engine = make_engine()
    engine.add_request([1, 2], greedy, request_id="a")
    engine._failures["a"] = RuntimeError("planted")
    other = engine.add_request([3], greedy)
    with monkeypatch.context() as patch:
        patch.setattr(engine._scheduler, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.abort(other)
    engine.discard("a")
    engine.add_request([1, 2], greedy, request_id="a")
    while not engine.is_finished("a"):
        engine.step()
    assert engine.output("a").outputs[0].token_ids == expected_tokens([1, 2], 5)


def test_refusals_reset_nothing(make_engine, greedy):
    engine = make_engine()
    name = engine.add_request(PROMPTS[0], greedy)
    engine.step()
    for bad in ([], [99], [1] * 40):
        with pytest.raises(QuireError):
            engine.add_request(bad, greedy)
    with pytest.raises(PromptError, match="in use"):
        engine.add_request([1], greedy, request_id=name)
    assert engine._scheduler.num_running == 1 and not engine.is_finished(name)
