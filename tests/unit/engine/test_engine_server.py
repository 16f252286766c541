"""What the engine's process answers, over a real socket; the engine's model is a function."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from quire.api.errors import CapacityError, QuireError
from quire.api.outputs import ChoiceDelta, Logprob, Metric, OutputDelta
from quire.api.step import StepPlan, StepResult
from quire.engine import wire
from quire.engine.engine import Engine
from quire.engine.engine_thread import EngineThread
from quire.engine.messages import (
    Begun,
    Call,
    Counters,
    Deltas,
    Forget,
    Forgotten,
    FromEngine,
    PromptLogprobs,
    Refused,
    Reply,
    Stop,
    Submit,
    TakingIn,
    ToEngine,
)
from quire.engine.process import EngineServer
from quire.engine.wire import LENGTH, Channel, decode_from_engine, encode, frame_length

GREEDY: dict[str, object] = {"temperature": 0.0, "max_tokens": 3}
STEP = Counters([])  # said by a test when a step runs


class Served:
    """A server's other end."""

    def __init__(self, engine: Engine) -> None:
        self._end, theirs = socket.socketpair()
        self._end.settimeout(20)
        self.server = EngineServer(Channel(theirs))
        self.server._thread = EngineThread(lambda: engine, self.server._deliver, self.server._end)
        self.server._engine = self.server._thread.built.result()
        engine.before_steps(self.server._begin)

    def tell(self, *messages: ToEngine) -> None:
        for message in messages:
            self._end.sendall(encode(message))

    def heard(self, kind: type[FromEngine]) -> list[FromEngine]:
        """All messages until one of this kind."""
        messages: list[FromEngine] = []
        while not messages or not isinstance(messages[-1], kind):
            messages.append(self._next())
        return messages

    def _next(self) -> FromEngine:
        header = self._end.recv(LENGTH.size, socket.MSG_WAITALL)
        return decode_from_engine(self._end.recv(frame_length(header), socket.MSG_WAITALL))


@contextmanager
def served(engine: Engine) -> Iterator[Served]:
    one = Served(engine)
    thread = threading.Thread(target=one.server.run)
    thread.start()
    try:
        yield one
    finally:
        one.tell(Stop())
        thread.join()


def test_what_a_step_begins_is_said_before_it_runs(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    runner = engine._parts.executor.runner  # type: ignore[attr-defined]  # of the executor in this process
    run = runner.run

    def marking(plan: StepPlan) -> StepResult:
        while one.server._num_open_calls < len(names):  # so that all are there before the first one ends
            time.sleep(0.001)
        one.server._channel.send(STEP)
        return run(plan)

    monkeypatch.setattr(runner, "run", marking)
    names = [f"r{index}" for index in range(6)]  # four run at once
    with served(engine) as one:
        one.tell(*(Submit(name, [1, 2, 3], {**GREEDY, "ignore_eos": True}) for name in names))
        messages: list[FromEngine] = []
        ended: set[str] = set()
        while ended != set(names):
            messages += one.heard(Deltas)
            last = messages[-1]
            if isinstance(last, Deltas):
                ended |= {delta.request_id for delta in last.deltas if delta.finished}
    first_step = messages.index(STEP)
    assert TakingIn("r0") in messages[:first_step] and isinstance(messages[first_step - 1], Begun)
    places = {
        name: place
        for place, message in enumerate(messages)
        if isinstance(message, Begun)
        for name in message.request_ids
    }
    assert list(places) == names
    first_end = next(
        place
        for place, message in enumerate(messages)
        if isinstance(message, Deltas) and any(delta.finished for delta in message.deltas)
    )
    assert max(places[name] for name in names[:4]) < first_end < min(places[name] for name in names[4:])


def test_the_end_of_a_taking_in_is_said_even_if_nobody_begins(make_engine: Callable[..., Engine]) -> None:
    with served(make_engine(num_blocks=4)) as one:
        begins = one.server._begin
        begins([])
        one.tell(Submit("too long", [1] * 20, GREEDY))
        assert one.heard(Refused)[0] == TakingIn("too long"), (
            "a step that begins nothing is not worth a message"
        )
        begins([])
        begins([])
        begins(["x"])
        assert [one.heard(Begun)[-1] for _ in range(2)] == [Begun([]), Begun(["x"])]


def test_forgetting_is_confirmed(make_engine: Callable[..., Engine]) -> None:
    with served(make_engine()) as one:
        one.tell(Submit("x", [1], {**GREEDY, "max_tokens": 25}), Forget("x"), Submit("x", [2], GREEDY))
        messages = one.heard(Forgotten)
        assert messages[-1] == Forgotten("x") and not [m for m in messages if isinstance(m, Refused)]
        messages = one.heard(Deltas)
        assert TakingIn("x") in messages
        one.tell(Forget("nobody"))
        assert one.heard(Forgotten)[-1] == Forgotten("nobody")


def test_a_request_that_was_counted_is_not_counted_again(make_engine: Callable[..., Engine]) -> None:
    with served(make_engine()) as one:
        one.tell(Submit("a", [1, 2], GREEDY), Submit("b", [1, 2, 3], GREEDY, is_counted=True))
        one.tell(Call(1, "get_metrics"))
        reply = one.heard(Reply)[-1]
        assert isinstance(reply, Reply)
        figures = {metric.name: metric.value for metric in reply.metrics}
        assert (figures["quire:num_requests"], figures["quire:prompt_tokens"]) == (1, 2)


def test_what_is_too_long_ends_its_request_alone(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MAX_FRAME_BYTES", 400)
    engine = make_engine()
    with served(engine) as one:
        one.tell(Submit("long", [1], {**GREEDY, "max_tokens": 25}))
        one.heard(Deltas)
        deltas = [OutputDelta(name, [ChoiceDelta(0, "a" * size, [1])]) for name, size in LENGTHS.items()]
        thread = one.server._required_thread
        thread.call(lambda engine: one.server._deliver(deltas)).result()
        one.tell(Forget("end of it"))
        messages = one.heard(Forgotten)
        [refused] = [message for message in messages if isinstance(message, Refused)]
        assert refused.request_id == "long" and isinstance(refused.error, CapacityError)
        assert not engine.has_unfinished, "the engine goes on with it"
        sent = [delta for message in messages if isinstance(message, Deltas) for delta in message.deltas]
        assert deltas[0] in sent and deltas[2] in sent


LENGTHS = {"one": 5, "long": 1000, "two": 100}


def test_long_prompt_logprobs_go_ahead(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MAX_PART_ENTRIES", 2)
    positions = [None, *({token_id: Logprob(-1.0)} for token_id in range(4))]
    with served(make_engine()) as one:
        one.server._deliver([OutputDelta("r", [], prompt_logprobs=positions)])
        messages = one.heard(Deltas)
        assert [type(message) for message in messages] == [PromptLogprobs, Deltas]
        assert messages[0] == PromptLogprobs("r", positions[:3])
        assert isinstance(messages[1], Deltas) and messages[1].deltas[0].prompt_logprobs == positions[3:]


def test_a_reply_that_cannot_be_sent_is_an_error(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    monkeypatch.setattr(engine, "get_metrics", lambda: [Metric("x", {1j}, "gauge")])  # type: ignore[arg-type]  # on purpose
    with served(engine) as one:
        one.tell(Call(5, "get_metrics"))
        reply = one.heard(Reply)[-1]
        assert isinstance(reply, Reply) and reply.number == 5
        assert isinstance(reply.error, QuireError) and "cannot be sent" in str(reply.error)
        one.tell(Call(6, "reset_prefix_cache"))
        one.heard(Reply)
        assert one.server._num_open_calls - one.server._num_done_calls <= 1  # the last may be on its way


def test_a_call_that_fails_is_done(make_engine: Callable[..., Engine]) -> None:
    with served(make_engine()) as one:
        one.server._call(lambda engine: 1 / 0)  # type: ignore[arg-type, return-value]  # on purpose
        one.server._required_thread.call(lambda engine: None).result()
        assert one.server._num_open_calls == one.server._num_done_calls == 1
