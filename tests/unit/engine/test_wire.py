"""The frames between an engine's process and the one above it: all that goes in comes out."""

from __future__ import annotations

import math
import socket
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.api.errors import (
    CapacityError,
    ConfigError,
    EngineClosedError,
    ExtensionError,
    PromptError,
    StepError,
)
from quire.api.outputs import (
    ChoiceDelta,
    Logprob,
    Metric,
    OutputDelta,
    PositionLogprobs,
    RequestMetrics,
    SpeculationMetrics,
)
from quire.api.request import SamplingParams
from quire.engine import wire
from quire.engine.messages import (
    Abort,
    Counters,
    Deltas,
    FromEngine,
    Heartbeat,
    PromptLogprobs,
    Refused,
    Reply,
    Submit,
)
from quire.engine.totals import Totals
from quire.engine.wire import (
    LENGTH,
    Channel,
    WireError,
    decode_from_engine,
    decode_to_engine,
    encode,
    frame_length,
    in_parts,
    plain_params,
)

TOKEN = st.integers(0, 2**31)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TIME = st.floats(0, 1e9)
LOGPROB = st.builds(Logprob, st.floats(allow_nan=False), st.none() | st.integers(1, 2**31), st.none() | TEXT)
POSITION = st.dictionaries(TOKEN, LOGPROB, max_size=3)
CHOICE = st.builds(
    ChoiceDelta,
    st.integers(0, 16383),
    TEXT,
    st.lists(TOKEN, max_size=3),
    st.none() | st.lists(POSITION, max_size=3),
    st.none() | st.sampled_from(["stop", "length", "abort", "error"]),
    st.none() | TOKEN | TEXT,
)
SPECULATION = st.builds(
    SpeculationMetrics, *[st.integers(0, 2**40)] * 3, st.lists(TOKEN, max_size=3), st.integers(0, 9), TIME
)
METRICS = st.builds(
    RequestMetrics,
    TIME,
    *[st.none() | TIME] * 4,
    st.integers(0, 9),
    st.integers(0, 9),
    st.none() | SPECULATION,
)
DELTA = st.builds(
    OutputDelta,
    TEXT,
    st.lists(CHOICE, max_size=3),
    st.booleans(),
    st.none() | st.lists(st.none() | POSITION, max_size=3),
    st.none() | METRICS,
)


def round_trip(message: FromEngine) -> FromEngine:
    frame = encode(message)
    assert frame_length(frame[: LENGTH.size]) == len(frame) - LENGTH.size
    return decode_from_engine(frame[LENGTH.size :])


@settings(max_examples=60, deadline=None)
@given(st.lists(DELTA, max_size=4), TOKEN)
def test_deltas_come_out_as_they_went_in(deltas: list[OutputDelta], count: int) -> None:
    assert round_trip(Deltas(deltas, count, 3)) == Deltas(deltas, count, 3)


def test_infinite_logprobs_come_out() -> None:
    choice = ChoiceDelta(0, "", [1], [{1: Logprob(-math.inf), 2: Logprob(math.nan)}])
    got = round_trip(Deltas([OutputDelta("r", [choice])]))
    assert isinstance(got, Deltas)
    [position] = got.deltas[0].choices[0].logprobs or []
    assert position[1].logprob == -math.inf and math.isnan(position[2].logprob)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (PromptError("too long"), PromptError, "too long"),
        (EngineClosedError("é\ud800"), EngineClosedError, "é?"),
        (type("OwnError", (ExtensionError,), {})("x"), ExtensionError, "x"),
        (KeyError("k"), StepError, "KeyError: 'k'"),
    ],
)
def test_errors_are_rebuilt_by_name(error: Exception, kind: type[Exception], text: str) -> None:
    for message in (Refused("r", error), Reply(1, [], error)):
        got = round_trip(message)
        assert isinstance(got, Refused | Reply)
        assert type(got.error) is kind and str(got.error) == text
    got = round_trip(Deltas([OutputDelta("r", [], True, None, None, error)]))
    assert isinstance(got, Deltas) and type(got.deltas[0].error) is kind


def test_the_plugin_at_fault_is_told() -> None:
    got = round_trip(Refused("r", ExtensionError("x", "grammars")))
    assert (
        isinstance(got, Refused) and isinstance(got.error, ExtensionError) and got.error.plugin == "grammars"
    )


def test_an_unknown_error_is_still_an_error() -> None:
    frame = encode(Refused("r", ConfigError("what")))
    got = decode_from_engine(frame[LENGTH.size :].replace(b"ConfigError", b"FutureError"))
    assert isinstance(got, Refused) and str(got.error) == "what"


def test_metrics_and_heartbeats() -> None:
    metrics = [Metric("quire:x", 1.5, "counter", "help", {"a": "b"}), Metric("quire:y", 2.0, "gauge")]
    assert round_trip(Counters(metrics)) == Counters(metrics)
    assert round_trip(Heartbeat(2**40, True, 1, 2)) == Heartbeat(2**40, True, 1, 2)


def test_sampling_parameters_are_rebuilt() -> None:
    params = SamplingParams(
        n=2,
        seed=-(2**63),
        temperature=0.0,
        stop=["a", "b"],
        stop_token_ids=[1, 2],
        max_tokens=None,
        logit_bias={5: -1.5},
        extra_args={"name": {"deep": [1, None, "x"]}},
    )
    submit = Submit("r", [1, 2], plain_params(params), "text", -3, "salt", [[1], None])
    got = decode_to_engine(encode(submit)[LENGTH.size :])
    assert got == submit and isinstance(got, Submit)
    assert SamplingParams(**got.params) == params
    assert plain_params(SamplingParams()) == {}


def test_what_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WireError, match="cannot be sent"):
        encode(Submit("r", [2**64], {}))
    with pytest.raises(WireError, match="cannot be sent"):
        encode(Submit("r", [1], {}, "\ud800"))
    monkeypatch.setattr(wire, "MAX_FRAME_BYTES", 100)
    with pytest.raises(CapacityError, match="the limit is 100"):
        encode(Submit("r", [1] * 200, {}))
    with pytest.raises(WireError, match="the limit is 100"):
        frame_length(LENGTH.pack(101))


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x90", encode(Heartbeat(1, True))[LENGTH.size :]])
def test_malformed_frames(body: bytes) -> None:
    with pytest.raises(WireError, match="malformed"):
        decode_to_engine(body)


def test_a_channel_reads_whole_frames_and_sees_the_end() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        channel = Channel(theirs)
        ours.sendall(encode(Abort("a")) + encode(Abort("b"))[:-1])
        assert channel.receive() == Abort("a")
        channel.send(Heartbeat(1, False))
        assert decode_from_engine(ours.recv(100)[LENGTH.size :]) == Heartbeat(1, False)
        ours.close()
        assert channel.receive() is None


def test_long_prompt_logprobs_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_PART_ENTRIES", 5)
    whole: list[PositionLogprobs | None] = [
        None,
        *({n: Logprob(-1.0), n + 1: Logprob(-2.0)} for n in range(7)),
    ]
    parts = list(in_parts(whole))
    assert [len(part) for part in parts] == [3, 2, 2, 1] and [one for part in parts for one in part] == whole
    assert list(in_parts([])) == [[]]
    wide: PositionLogprobs = {n: Logprob(-1.0) for n in range(9)}
    assert list(in_parts([wide, wide])) == [[wide], [wide]]


def test_a_long_part_is_decoded_at_once() -> None:
    """Decoding holds the interpreter's lock, so that nothing else runs meanwhile."""
    position = {n: Logprob(-1.5, n, "token") for n in range(21)}
    part = next(in_parts([position] * 10_000))
    body = encode(PromptLogprobs("r", part))[LENGTH.size :]
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        decode_from_engine(body)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 0.02


def test_counters_go_on_when_an_engine_died() -> None:
    totals = Totals()
    totals.note(
        [Metric("c", 3.0, "counter"), Metric("g", 5.0, "gauge"), Metric("c", 1.0, "counter", "", {"k": "v"})]
    )
    totals.engine_died()
    assert [(metric.name, metric.value) for metric in totals.metrics()] == [("c", 3.0), ("c", 1.0)]
    totals.note([Metric("c", 2.0, "counter"), Metric("g", 1.0, "gauge")])
    totals.engine_died()
    totals.note([Metric("c", 1.0, "counter")])
    assert {(metric.name, metric.value) for metric in totals.metrics()} == {("c", 6.0), ("c", 1.0)}
