"""Who is let in: counts of choices and tokens, the door, and what is left counted when all have gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from fake_engine import FakeEngine, deltas_of
from serving_app import FakeServer, create_app, state_of

from quire import SamplingParams
from quire.api.client import EngineRequest
from quire.api.errors import EngineClosedError
from quire_serving.admission import Admission
from quire_serving.errors import ApiError
from quire_serving.settings import ServeSettings


def requests(*tokens: int, n: int = 1) -> list[EngineRequest]:
    params = SamplingParams(n=n)
    return [EngineRequest(str(place), [1] * count, params) for place, count in enumerate(tokens)]


def admission(engine: FakeEngine | None = None, **settings: Any) -> Admission:
    return Admission(engine or FakeEngine(max_num_seqs=8), ServeSettings(**settings))


def refusal(act: Callable[[], object]) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        act()
    assert (caught.value.status == 429) == ("Retry-After" in caught.value.headers)
    return caught.value.status, caught.value.code


def test_each_choice_of_a_request_counts() -> None:
    door = admission(max_queued_requests=12)
    first = door.admit(requests(5, n=16))
    assert refusal(lambda: door.admit(requests(5, n=5))) == (429, "queue_full")
    second = door.admit(requests(5, n=4))
    assert refusal(door.check_room) == (429, "queue_full")
    first.note_end(0)
    first.close()
    third = door.admit(requests(5, 5, n=8))
    second.close()
    third.close()
    assert refusal(lambda: door.admit(requests(5, n=21))) == (400, "too_many_choices")
    door.admit(requests(5, n=20)).close()


def test_prompt_tokens_count_until_their_first_output() -> None:
    door = admission(max_queued_tokens=100)
    first = door.admit(requests(150))  # nothing waited
    assert refusal(lambda: door.admit(requests(1))) == (429, "queue_full")
    assert refusal(door.check_room) == (429, "queue_full")
    first.note_output(0)
    second = door.admit(requests(60))
    assert refusal(lambda: door.admit(requests(41))) == (429, "queue_full")
    third = door.admit(requests(40))
    for ticket in (first, second, third):
        ticket.close()
    door.admit(requests(100, 100)).close()


def test_how_much_waits_is_told() -> None:
    engine = FakeEngine(max_num_seqs=4)
    door = admission(engine, max_queued_requests=2, max_queued_tokens=100)
    engine.num_running, engine.num_waiting, engine.num_waiting_tokens = 4, 1, 60
    door.admit(requests(40)).close()
    for tokens, what in (((1, 1), "3 requests"), ((41,), "101 prompt tokens")):
        with pytest.raises(ApiError, match="queue_full") as caught:
            door.admit(requests(*tokens))
        assert what in caught.value.message
    assert admission(engine).max_queued_tokens == 4 * 1024 * 4


def test_what_plugins_gave_the_engine_counts_too() -> None:
    engine = FakeEngine(max_num_seqs=8)
    door = admission(engine, max_queued_requests=2)
    engine.num_waiting = 9
    door.admit(requests(1)).close()
    assert refusal(lambda: door.admit(requests(1, 1))) == (429, "queue_full")


def test_prompts_that_leave_no_room_are_too_long() -> None:
    door = admission(FakeEngine(max_model_len=10))
    door.admit(requests(9)).close()
    assert refusal(lambda: door.admit(requests(1, 10))) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "a" * 1025}, "prompt"),  # seen before it is tokenized
        ("/v1/completions", {"prompt": "a" * 1024}, "prompt"),  # and after
        ("/v1/completions", {"prompt": [1] * 1024, "echo": True}, "prompt"),
        ("/v1/completions", {"prompt": ["a", "b" * 1024]}, "prompt"),
        ("/generate", {"prompt": "a" * 1024}, "prompt"),
        ("/tokenize", {"prompt": "a" * 1025}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 1024}]}, "messages"),
        ("/v1/responses", {"input": "a" * 1024}, "input"),
        ("/v1/responses", {"input": "a" * 1010}, "input"),
    ],
)
def test_a_long_prompt_has_one_code_and_its_field(path: str, body: dict[str, object], param: str) -> None:
    server = FakeServer.of()
    assert server.refused(path, **body) == (400, "context_length_exceeded", param)
    message = server.client.post(path, json=body).json()["error"]["message"]
    assert "1024" in message and not server.engine.requests


def test_nothing_stays_counted() -> None:
    server = FakeServer.of(max_queued_requests=0)
    for _ in range(3):
        server.ok("/v1/completions", prompt="a", n=8)
        server.events("/v1/completions", prompt=["a", "b"], n=4)
        server.refused("/v1/completions", prompt=["a", "b" * 1024])
    server.engine.script = lambda request: [ApiError(500, "x", "y")]
    for _ in range(2):
        assert server.client.post("/v1/completions", json={"prompt": "a", "n": 8}).status_code == 500


def test_a_full_queue_is_told_while_others_generate() -> None:
    async def main() -> None:
        engine = FakeEngine(max_num_seqs=8)
        engine.is_stuck = True
        app = create_app(state_of(engine, max_queued_requests=9))
        begun = asyncio.Event()
        first = asyncio.create_task(call(app, b'{"prompt": "a", "n": 16, "stream": true}', begun))
        await asyncio.wait_for(begun.wait(), 5)
        assert (await call(app, b'{"prompt": "a", "n": 2}'))[0] == 429
        first.cancel()

    asyncio.run(main())


async def call(app: Any, body: bytes, begun: asyncio.Event | None = None) -> tuple[int, bool, float]:
    """Status, whether the body was read before the answer, and the seconds until it."""
    seen: dict[str, Any] = {"is_read": False}
    loop = asyncio.get_running_loop()
    parts = [{"type": "http.request", "body": body, "more_body": False}]
    begin_s = loop.time()

    async def receive() -> Any:
        if parts:
            seen["is_read"] = True
            return parts.pop()
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            seen.update(status=message["status"], was_read=seen["is_read"], s=loop.time() - begin_s)
        elif message.get("body") and begun is not None:
            begun.set()

    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers,
             "query_string": b"", "root_path": "", "http_version": "1.1"}  # fmt: skip
    await app(scope, receive, send)
    return seen["status"], seen["was_read"], seen["s"]


@pytest.mark.parametrize(
    ("trouble", "status", "code"),
    [("draining", 503, "server_draining"), ("ended", 503, "engine_unavailable"), ("full", 429, "queue_full")],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/generate"])
def test_the_hopeless_is_refused_before_its_body_is_read(
    path: str, trouble: str, status: int, code: str
) -> None:
    server = FakeServer.of(api_key=("k",))
    server.state.is_draining = trouble == "draining"
    server.engine.is_given_up = trouble == "ended"
    server.engine.num_waiting = 1000 if trouble == "full" else 0
    headers = {"Authorization": "Bearer k", "Content-Type": "application/json"}
    answer = server.client.post(path, content=b"this is no JSON", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["retry-after"]
    assert server.client.post(path, content=b"{}").status_code == 401
    assert server.client.get("/health").status_code == 200
    assert server.client.post("/tokenize", json={"prompt": "a"}, headers=headers).status_code == 200
    assert f'reason="{code}"' in server.client.get("/metrics", headers=headers).text


def test_refusals_at_the_door_are_fast() -> None:
    async def main() -> None:
        state = state_of(FakeEngine())
        state.is_draining = True
        app = create_app(state)
        answers = [await call(app, b"x" * 2**20) for _ in range(100)]
        assert all(answer[:2] == (503, False) for answer in answers)
        assert sorted(answer[2] for answer in answers)[98] < 0.05

    asyncio.run(main())


def test_a_draining_server_says_so_to_the_streams_that_it_cuts() -> None:
    server = FakeServer.of()

    def script(request: EngineRequest) -> list[Any]:
        server.state.is_draining = True
        return [*deltas_of(request, ["a", "b"])[:1], EngineClosedError("closed")]

    server.engine.script = script
    events = server.events("/v1/completions", prompt="a")
    assert events[-1]["error"]["code"] == "server_draining"


def test_requests_that_are_tokenized_count() -> None:
    door = admission(max_queued_requests=2)
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(door.arriving())
        assert refusal(lambda: door.arriving().__enter__()) == (429, "queue_full")
        assert refusal(lambda: door.admit(requests(5))) == (429, "queue_full")
    door.admit(requests(5, n=10)).close()
