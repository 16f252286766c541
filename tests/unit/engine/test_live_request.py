"""What came and nobody has read: all of it, once, at a cost that grows with it."""

from __future__ import annotations

import asyncio
import time

import pytest

from quire.api.client import EngineRequest
from quire.api.errors import CapacityError
from quire.api.outputs import ChoiceDelta, Logprob, OutputDelta, PositionLogprobs, RequestMetrics
from quire.api.request import FinishReason, SamplingParams
from quire.engine.live_request import LiveRequest
from quire.engine.unread import Unread


def new(**keywords: int) -> LiveRequest:
    return LiveRequest(EngineRequest("r", [1, 2, 3], SamplingParams(**keywords)))


def test_joined_deltas_say_the_same() -> None:
    first = OutputDelta("r", [ChoiceDelta(1, "a", [1], [{1: Logprob(-1)}])], False, [None])
    metrics = RequestMetrics(1.0)
    second = OutputDelta(
        "r",
        [ChoiceDelta(0, "x", [7], []), ChoiceDelta(1, "b", [2], [{2: Logprob(-2)}], "stop", 2)],
        True,
        None,
        metrics,
    )
    unread = Unread()
    unread.add(first)
    unread.add(second)
    assert unread
    assert unread.take() == OutputDelta(
        "r",
        [
            ChoiceDelta(0, "x", [7], []),
            ChoiceDelta(1, "ab", [1, 2], [{1: Logprob(-1)}, {2: Logprob(-2)}], "stop", 2),
        ],
        True,
        [None],
        metrics,
    )
    assert not unread and unread.take() is None
    unread.add(OutputDelta("r", [ChoiceDelta(0, "c", [3])]))
    assert unread.take() == OutputDelta("r", [ChoiceDelta(0, "c", [3])])


def test_a_slow_reader_costs_no_more_than_it_reads() -> None:
    async def seconds(count: int) -> float:
        live = new(max_tokens=count)
        begin = time.thread_time()
        for _ in range(count):
            live.put(OutputDelta("r", [ChoiceDelta(0, "abcdefgh", [7])]))
        delta = await live.take()
        spent = time.thread_time() - begin
        assert delta.choices[0].token_ids == [7] * count and len(delta.choices[0].text) == 8 * count
        return spent

    async def main() -> float:
        few = min([await seconds(2_000) for _ in range(3)])
        return min([await seconds(20_000) for _ in range(3)]) / few

    assert asyncio.run(main()) < 40  # ten times as much; a hundred where each merge copies


def positions(*token_ids: int) -> list[PositionLogprobs | None]:
    return [{token_id: Logprob(-1.0)} for token_id in token_ids]


def test_prompt_logprobs_come_whole_and_once() -> None:
    async def main() -> None:
        live = new()
        live.put_prompt_logprobs([None, *positions(1)])
        live.note_lost()  # the next engine sends them from the beginning
        live.put_prompt_logprobs([None, *positions(1)])
        live.put(OutputDelta("r", [ChoiceDelta(0, "a", [1])], prompt_logprobs=positions(2)))
        assert (await live.take()).prompt_logprobs == [None, *positions(1, 2)]
        live.note_lost()
        live.put_prompt_logprobs([None, *positions(1)])
        live.put(OutputDelta("r", [ChoiceDelta(0, "b", [2])], prompt_logprobs=positions(2)))
        assert (await live.take()).prompt_logprobs is None

    asyncio.run(main())


def test_refused_before_and_after_something_came() -> None:
    async def main() -> None:
        live = new()
        live.refuse(CapacityError("too much"))
        with pytest.raises(CapacityError):
            await live.take()
        live = new(n=2)
        live.put(OutputDelta("r", [ChoiceDelta(0, "a", [1], None, "stop")]))
        live.refuse(CapacityError("too much"))
        delta = await live.take()
        assert [choice.finish_reason for choice in delta.choices] == ["stop", "error"]
        assert delta.finished and isinstance(delta.error, CapacityError)

    asyncio.run(main())


def test_ended_here() -> None:
    async def main() -> None:
        live = new(n=2)
        live.put(OutputDelta("r", [ChoiceDelta(1, "a", [1], None, "length")]))
        await live.take()
        live.end(FinishReason.ABORT)
        delta = await live.take()
        assert [(choice.index, choice.finish_reason) for choice in delta.choices] == [(0, "abort")]
        assert live.is_over and delta.error is None and delta.metrics is not None

    asyncio.run(main())
