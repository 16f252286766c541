"""Whom the roster suspects when engines die, and who goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps

import pytest
from fake_process import FakeProcess

from quire.api.client import EngineRequest
from quire.api.errors import PromptError, StepError
from quire.api.outputs import ChoiceDelta, OutputDelta
from quire.api.request import SamplingParams
from quire.engine.calls import Calls
from quire.engine.live_request import LiveRequest
from quire.engine.messages import Abort, Forget, Submit
from quire.engine.roster import Roster
from quire.engine.switches import Switches


def in_a_loop(test: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    @wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


class Scene:
    """A roster with requests, and the engines that come and go."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.roster = Roster(Switches(Calls()))
        self.lives: dict[str, LiveRequest] = {}
        for name in names:
            self.add(name)
        self.next_engine()

    def add(self, name: str) -> LiveRequest:
        live = self.lives[name] = LiveRequest(EngineRequest(name, [1, 2], SamplingParams(n=1)))
        self.roster.add(live)
        return live

    def next_engine(self) -> None:
        self.engine = FakeProcess(None)
        self.roster.engine_ready(self.engine)  # type: ignore[arg-type]  # stands for it

    def submitted(self) -> list[str]:
        return [message.request_id for message in self.engine.told if isinstance(message, Submit)]

    def begin(self, *names: str) -> None:
        for name in names:
            self.roster.note_taking_in(name)
        self.roster.note_begun(names)

    def die(self) -> bool:
        """The engine dies, and the next one comes; whether a request was ended for it."""
        is_found = self.roster.engine_died()
        self.next_engine()
        return is_found

    def give_token(self, name: str) -> None:
        live = self.lives[name]
        is_first = not live.has_output
        live.put(OutputDelta(name, [ChoiceDelta(0, "a", [7])]))
        self.roster.note_output(live, is_first=is_first)


async def end_of(live: LiveRequest) -> OutputDelta:
    delta = await live.take()
    assert delta.finished
    return delta


@in_a_loop
async def test_who_only_waits_is_never_ended() -> None:
    scene = Scene(["runs", "waits"])
    for _ in range(3):
        scene.roster.note_taking_in("runs")
        scene.roster.note_taking_in("waits")
        scene.begin("runs")
        scene.give_token("runs")
        assert not scene.die()
        assert scene.submitted() == ["runs", "waits"]
    assert scene.roster.get("waits") is scene.lives["waits"]


@in_a_loop
async def test_who_runs_alone_is_ended_after_two_deaths() -> None:
    scene = Scene(["poison", "waits"])
    scene.begin("poison")
    assert not scene.die()
    scene.begin("poison")
    assert scene.die()
    delta = await end_of(scene.lives["poison"])
    assert isinstance(delta.error, StepError) and "died 2 times" in str(delta.error)
    assert scene.submitted() == ["waits"]


@in_a_loop
async def test_a_token_clears() -> None:
    scene = Scene(["one"])
    for _ in range(4):
        scene.begin("one")
        scene.give_token("one")
        assert not scene.die()


@in_a_loop
async def test_suspects_are_tried_alone_and_a_kill_from_outside_ends_nobody() -> None:
    scene = Scene(["a", "b", "waits"])
    for _ in range(2):
        scene.begin("a", "b")
        assert not scene.die()
    assert scene.submitted() == ["a"] and scene.roster.num_held == 2
    scene.begin("a")
    assert not scene.die(), "one death on trial may be a kill from outside"
    assert scene.submitted() == ["a"]
    scene.begin("a")
    scene.give_token("a")
    assert scene.submitted() == ["a", "b"]
    scene.begin("b")
    assert not scene.die(), "a ran too"
    assert scene.submitted() == ["b"], "the one tried last goes first"
    scene.begin("b")
    assert not scene.die()
    scene.begin("b")
    assert scene.die()
    assert (await end_of(scene.lives["b"])).choices[0].finish_reason == "error"
    assert scene.submitted() == ["a", "waits"]


@in_a_loop
async def test_a_death_before_the_one_on_trial_began_is_not_its_own() -> None:
    scene = Scene(["a"])
    for _ in range(3):
        assert not scene.die()
    assert scene.lives["a"].num_fruitless_deaths == 0


@in_a_loop
async def test_who_is_taken_in_is_suspected_and_who_runs_meanwhile_is_not() -> None:
    scene = Scene(["runs", "poison"])
    for is_last in (False, True):
        scene.begin("runs")
        scene.roster.note_taking_in("poison")
        assert scene.die() is is_last
    assert scene.lives["runs"].num_fruitless_deaths == 0
    assert isinstance((await end_of(scene.lives["poison"])).error, StepError)


@in_a_loop
async def test_an_id_can_be_used_again_at_once() -> None:
    scene = Scene(["x"])
    old = scene.lives["x"]
    with pytest.raises(PromptError, match="in use"):
        scene.add("x")
    scene.roster.leave(old)
    new = scene.add("x")
    assert [type(message) for message in scene.engine.told] == [Submit, Forget, Submit]
    assert scene.roster.answered("x") is None, "what comes now is still the old one's"
    scene.roster.leave(new)
    newest = scene.add("x")
    scene.roster.note_forgotten("x")
    assert scene.roster.answered("x") is None
    scene.roster.note_forgotten("x")
    assert scene.roster.answered("x") is newest
    scene.roster.leave(newest)
    scene.die()
    assert scene.roster.answered("x") is None and scene.add("x") is scene.roster.answered("x")


@in_a_loop
async def test_a_death_of_one_who_left_is_not_another_ones_own() -> None:
    scene = Scene(["poison", "good"])
    for _ in range(2):
        scene.begin("poison", "good")
        scene.roster.leave(scene.lives["poison"])
        assert not scene.die()
        assert scene.lives["good"].num_own_deaths == 0
        scene.add("poison")


@in_a_loop
async def test_aborting_and_leaving() -> None:
    scene = Scene(["a", "b"])
    assert scene.roster.num_waiting_tokens == 4
    scene.roster.abort(scene.lives["a"])
    assert scene.engine.told_of(Abort) and "a" in [live.request.request_id for live in scene.lives.values()]
    scene.roster.engine_died()
    assert (await end_of(scene.lives["a"])).choices[0].finish_reason == "abort"
    scene.roster.abort(scene.lives["b"])
    assert (await end_of(scene.lives["b"])).choices[0].finish_reason == "abort"
    assert len(scene.roster) == scene.roster.num_waiting_tokens == 0


@in_a_loop
async def test_a_suspect_that_was_left_is_not_waited_for() -> None:
    scene = Scene(["a"])
    scene.begin("a")
    assert not scene.die()
    scene.roster.leave(scene.lives["a"])  # its client has gone; it would have been the culprit
    scene.add("b")
    scene.begin("b")
    assert scene.die()  # the deaths in a row begin anew
    assert not scene.die()


@in_a_loop
async def test_a_death_of_what_was_left_says_nothing_of_the_next_engine() -> None:
    scene = Scene(["a"])
    scene.begin("a")
    scene.roster.leave(scene.lives["a"])
    assert scene.die()
