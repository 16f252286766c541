"""Routes of plugins: whatever they do, their request alone fails, by the plugin's name; and they are counted."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fake_engine import FakeEngine
from serving_app import state_of
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from quire.api.errors import ExtensionError
from quire.api.serving import PluginRoute, ServerExtensions
from quire.plugins.calls import PluginCalls
from quire_serving.app import create_app
from quire_serving.metrics import ServerMetrics


def serve(app: object, calls: PluginCalls | None = None, **settings: Any) -> TestClient:
    """A server with /plugins/mine/x, which is GET and POST."""
    calls = calls or PluginCalls()
    engine = FakeEngine()
    state = replace(
        state_of(engine, **settings),
        extensions=ServerExtensions(
            (PluginRoute("mine", "/x", ("GET", "POST"), lambda context: app),),
            watch=calls.watch,
            metrics=calls.metrics,
        ),
        metrics=ServerMetrics(engine, "fake", plugins=calls.metrics),
    )
    return TestClient(create_app(state), raise_server_exceptions=False)


async def raises(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("secret")


async def exits(scope: Scope, receive: Receive, send: Send) -> None:
    raise SystemExit("secret")


async def says_nothing(scope: Scope, receive: Receive, send: Send) -> None:
    pass


async def sends_junk(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"kind": "secret"})


async def gives_a_dict(request: Request) -> Any:
    return {"secret": 1}


def raises_in_a_thread(request: Request) -> Response:
    raise RuntimeError("secret")


def exits_in_a_thread(request: Request) -> Response:
    raise SystemExit("secret")


@pytest.mark.parametrize(
    "app", [raises, exits, says_nothing, sends_junk, gives_a_dict, raises_in_a_thread, exits_in_a_thread]
)
def test_a_failure_is_the_requests_alone(app: object) -> None:
    calls = PluginCalls()
    client = serve(app, calls)
    for _ in range(2):
        answer = client.get("/plugins/mine/x")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (500, "plugin_failed")
        assert error["message"] == "the plugin 'mine' failed on this request"
    assert calls.count("mine", "route /x").errors == 2
    assert client.get("/health").status_code == 200


def test_handlers_are_functions_of_a_request() -> None:
    async def on_the_loop(request: Request) -> Response:
        return JSONResponse({"got": await request.json()})

    def in_a_thread(request: Request) -> Response:
        return PlainTextResponse(f"{threading.current_thread() is threading.main_thread()}")

    async def refuses(request: Request) -> Response:
        raise HTTPException(404, "not here")

    assert serve(on_the_loop).post("/plugins/mine/x", json=[1]).json() == {"got": [1]}
    assert serve(in_a_thread).get("/plugins/mine/x").text == "False"
    refusal = serve(refuses).get("/plugins/mine/x")
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (404, "not_found")
    assert serve(JSONResponse([1])).get("/plugins/mine/x").json() == [1]  # an object that is an application


def test_a_handler_that_blocks_a_thread_holds_up_nobody() -> None:
    may_go = threading.Event()

    def blocks(request: Request) -> Response:
        may_go.wait(5)
        return PlainTextResponse("done")

    with serve(blocks) as client:
        answers: list[str] = []
        threads = [
            threading.Thread(target=lambda: answers.append(client.get("/plugins/mine/x").text))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        assert client.get("/health").status_code == 200 and not answers
        may_go.set()
        for thread in threads:
            thread.join(5)
        assert answers == ["done"] * 3


def test_streams_come_in_pieces_and_a_late_failure_cuts_them(caplog: pytest.LogCaptureFixture) -> None:
    async def pieces(fails: bool) -> Any:
        yield b"one "
        await asyncio.sleep(0)
        if fails:
            raise RuntimeError("secret")
        yield b"two"

    async def handler(request: Request) -> Response:
        return StreamingResponse(pieces("fails" in request.query_params))

    calls = PluginCalls()
    client = serve(handler, calls)
    assert client.get("/plugins/mine/x").text == "one two"
    logging.getLogger("quire").propagate = True
    broken = client.get("/plugins/mine/x?fails")
    assert broken.text == "one " and "ExtensionError: plugin 'mine' failed" in caplog.text
    assert (calls.count("mine", "route /x").calls, calls.count("mine", "route /x").errors) == (2, 1)


def test_time_and_failures_are_metrics_and_cancelling_is_no_failure() -> None:
    calls = PluginCalls()
    client = serve(raises, calls)
    client.get("/plugins/mine/x")
    text = client.get("/metrics").text
    labels = '{engine="0",model_name="fake",plugin="mine",point="route /x"}'
    lines = {line.rsplit(" ", 1)[0]: line.rsplit(" ", 1)[1] for line in text.splitlines()}
    assert lines[f"quire:plugin_calls_total{labels}"] == lines[f"quire:plugin_errors_total{labels}"] == "1.0"
    assert float(lines[f"quire:plugin_seconds_total{labels}"]) > 0
    route = '{engine="0",method="GET",model_name="fake",route="/plugins/mine/x",status="500"}'
    assert lines[f"quire:http_requests_total{route}"] == "1.0"

    async def cancelled() -> None:
        with pytest.raises(asyncio.CancelledError), calls.watch("mine", "slow"):
            raise asyncio.CancelledError

    asyncio.run(cancelled())
    assert (calls.count("mine", "slow").calls, calls.count("mine", "slow").errors) == (1, 0)


def test_routes_stand_behind_the_keys_however_their_path_is_spelt() -> None:
    async def reached(request: Request) -> Response:
        return PlainTextResponse("reached")

    client = serve(reached, api_key=("right",))
    spellings = (
        "/plugins/mine/x",
        "/plugins//mine/x",
        "/plugins/mine/x/",
        "/PLUGINS/mine/x",
        "/health/../plugins/mine/x",
        "/plugins/mine/%78",
        "//plugins/mine/x",
        "/plugins/mine/x;/health",
        "/health%2f..%2fplugins/mine/x",
    )
    for path in spellings:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer righ"}):
            answer = client.request("GET", "http://testserver" + path, headers=headers)
            assert answer.status_code == 401, path
    assert client.get("/plugins/mine/x", headers={"Authorization": "Bearer right"}).text == "reached"


@pytest.mark.parametrize("failure", [RuntimeError("boom"), SystemExit(3)])
def test_a_factory_that_fails_ends_the_start(failure: BaseException) -> None:
    def factory(context: object) -> Callable[..., object]:
        raise failure

    state = state_of(FakeEngine())
    extensions = ServerExtensions((PluginRoute("mine", "/x", ("GET",), factory),))
    with pytest.raises(ExtensionError, match="plugin 'mine': its route '/x' failed"):
        create_app(replace(state, extensions=extensions))
