"""Submissions: merging, disconnects, draining, and what is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import orjson
import pytest
from fake_engine import FakeEngine, deltas_of
from serving_app import FakeServer, create_app, state_of
from starlette.requests import Request

from quire import SamplingParams
from quire.api.client import EngineRequest
from quire.api.errors import EngineClosedError, PromptError
from quire.api.outputs import OutputDelta
from quire_serving import event_stream
from quire_serving.errors import ApiError
from quire_serving.event_stream import EventStream
from quire_serving.server import drain
from quire_serving.submission import (
    MAX_CHARS_ON_LOOP,
    ClientGoneError,
    Submission,
    event,
    new_request_id,
    tokenize,
)


class Connection:
    """A client that can hang up."""

    def __init__(self) -> None:
        self.is_closed = asyncio.Event()
        self.request = Request({"type": "http", "headers": []}, self.receive)

    async def receive(self) -> dict[str, str]:
        await self.is_closed.wait()
        return {"type": "http.disconnect"}


def request(name: str, **fields: Any) -> EngineRequest:
    return EngineRequest(name, [1, 2], SamplingParams(**fields))


def test_one_request_gives_its_deltas_in_order_and_leaves_nothing() -> None:
    async def main() -> None:
        engine = FakeEngine(["a", "b"])
        async with Submission(state_of(engine), Connection().request, [request("r")]) as submission:
            got = [(index, delta.choices[0].text) async for index, delta in submission]
        assert got == [(0, "a"), (0, "b")] and engine.aborted == []
        assert await _settled()

    asyncio.run(main())


async def _settled() -> bool:
    """Cancelled tasks need a turn of the loop to end."""
    await asyncio.sleep(0.01)
    return len(asyncio.all_tasks()) == 1


def test_several_requests_are_merged() -> None:
    async def main() -> None:
        engine = FakeEngine(lambda each: deltas_of(each, ["a"] * (1 + int(each.request_id))))
        requests = [request(str(number)) for number in range(3)]
        async with Submission(state_of(engine), Connection().request, requests) as submission:
            got = [index async for index, _ in submission]
        assert sorted(got) == [0, 1, 1, 2, 2, 2] and not engine.aborted
        assert await _settled()

    asyncio.run(main())


@pytest.mark.parametrize("count", [1, 3])
def test_leaving_the_block_aborts(count: int) -> None:
    async def main() -> None:
        engine = FakeEngine()
        engine.is_stuck = True
        requests = [request(str(number)) for number in range(count)]
        async with Submission(state_of(engine), Connection().request, requests) as submission:
            await anext(submission)
            await asyncio.sleep(0.01)
        assert sorted(engine.aborted) == [each.request_id for each in requests]
        assert engine.num_running == 0 and await _settled()

    asyncio.run(main())


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("is_begun", [False, True])
def test_a_client_that_hangs_up_aborts_at_once(count: int, is_begun: bool) -> None:
    async def main() -> None:
        engine = FakeEngine()
        engine.is_stuck, engine.pause_s = is_begun, 0 if is_begun else 60
        connection = Connection()
        requests = [request(str(number)) for number in range(count)]
        submission = Submission(state_of(engine), connection.request, requests)
        asyncio.get_running_loop().call_later(0.05, connection.is_closed.set)
        with pytest.raises(ClientGoneError):
            async with asyncio.timeout(5), submission:
                async for _ in submission:
                    pass
        assert sorted(engine.aborted) == [each.request_id for each in requests] and await _settled()
        task = asyncio.current_task()
        assert task is not None and not task.cancelling()

    asyncio.run(main())


def test_cancelling_is_no_disconnect() -> None:
    async def main() -> None:
        engine = FakeEngine()
        engine.is_stuck = True

        async def work() -> None:
            async with Submission(state_of(engine), Connection().request, [request("r")]) as submission:
                async for _ in submission:
                    pass

        task = asyncio.create_task(work())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.aborted == ["r"]

    asyncio.run(main())


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(PromptError("no"), 400, "invalid_prompt"), (EngineClosedError("no"), 503, "engine_unavailable")],
)
def test_refusals_come_before_the_first_delta(count: int, error: Exception, status: int, code: str) -> None:
    async def main() -> None:
        state = state_of(FakeEngine(lambda each: [error]))
        submission = Submission(state, Connection().request, [request(str(each)) for each in range(count)])
        with pytest.raises(ApiError) as caught:
            await submission.start()
        assert (caught.value.status, caught.value.code) == (status, code) and await _settled()

    asyncio.run(main())


def test_a_draining_server_refuses() -> None:
    server = FakeServer.of()
    server.state.is_draining = True
    answer = server.client.post("/v1/completions", json={"prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_draining")
    assert answer.headers["retry-after"] and not server.engine.requests


def test_a_stream_that_breaks_ends_with_an_error_event() -> None:
    async def main() -> None:
        engine = FakeEngine()
        submission = Submission(state_of(engine), Connection().request, [request("r")])
        await submission.start()

        async def events() -> AsyncGenerator[bytes, None]:
            yield event({"a": 1})
            raise ValueError("a secret")

        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await EventStream(submission, events())({"type": "http"}, Connection().receive, send)
        body = b"".join(message.get("body", b"") for message in sent)
        assert body.startswith(b'data: {"a":1}\n\ndata: {"error":') and b"secret" not in body
        assert engine.aborted == ["r"] and sent[0]["status"] == 200

    asyncio.run(main())


def test_a_client_that_stops_reading_gives_its_place_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        engine = FakeEngine()
        state = state_of(engine)
        submission = Submission(state, Connection().request, [request("r")])
        await submission.start()

        async def events() -> AsyncGenerator[bytes, None]:
            yield event({"a": 1})

        async def send(message: Any) -> None:
            if message.get("body"):
                await asyncio.Event().wait()

        stream = EventStream(submission, events())
        await asyncio.wait_for(stream({"type": "http"}, Connection().receive, send), 5)
        assert engine.aborted == ["r"] and state.admission.num_sequences == 0

    monkeypatch.setattr(event_stream, "SEND_S", 0.05)
    asyncio.run(main())


def test_what_fails_while_closing_keeps_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        places: list[int] = []

        async def stream(one: EngineRequest) -> AsyncGenerator[OutputDelta, None]:
            try:
                yield deltas_of(one, ["a", "b"])[0]
                await asyncio.Event().wait()
            except GeneratorExit:
                places.append(state.admission.num_sequences)
                raise ValueError("an engine's") from None

        engine = FakeEngine()
        monkeypatch.setattr(engine, "stream", stream)  # one that fails when it is left
        state = state_of(engine)
        submission = Submission(state, Connection().request, [request("0")])
        await submission.start()
        submission._streams.append(stream(request("1")))
        await anext(submission._streams[1])
        with pytest.raises(ValueError, match="an engine's"):
            await submission.close()
        assert places == [0, 0]

    asyncio.run(main())


def test_draining_waits_for_what_was_let_in_and_is_not_submitted() -> None:
    async def main() -> None:
        state = state_of(FakeEngine(), drain_s=5)
        ticket = state.admission.admit([request("r")])
        task = asyncio.create_task(drain(state))
        await asyncio.sleep(0.05)
        assert not task.done()
        ticket.close()
        await asyncio.wait_for(task, 2)

    asyncio.run(main())


def test_a_stream_whose_client_hangs_up_aborts() -> None:
    async def main() -> None:
        engine = FakeEngine()
        engine.is_stuck = True
        app = create_app(state_of(engine))
        gone = asyncio.Event()
        body = orjson.dumps({"prompt": "a", "stream": True})
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message.get("body"):
                gone.set()

        headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
        scope = {
            "type": "http", "method": "POST", "path": "/v1/completions", "raw_path": b"/v1/completions",
            "headers": headers, "query_string": b"", "root_path": "", "http_version": "1.1", "scheme": "http",
            "asgi": {"version": "3.0"}, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
        }  # fmt: skip
        await asyncio.wait_for(app(scope, receive, send), 5)
        assert len(engine.aborted) == 1 and await _settled()

    asyncio.run(main())


def test_long_texts_are_tokenized_too() -> None:
    async def main() -> None:
        state = state_of(FakeEngine(max_model_len=10**6))
        for length in (1, MAX_CHARS_ON_LOOP + 1):
            assert await tokenize(state, "a" * length) == [97] * length
        with pytest.raises(ApiError) as caught:
            await tokenize(state, "\ud800")
        assert caught.value.code == "tokenizer_error"

    asyncio.run(main())


def test_ids_are_never_the_same() -> None:
    assert len({new_request_id("x") for _ in range(100)}) == 100
