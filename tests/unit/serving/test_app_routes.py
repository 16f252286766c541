"""The application's own routes, its errors, its schema, and the routes of plugins."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from fake_engine import FakeEngine
from serving_app import state_of
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from quire.api.errors import ConfigError
from quire.api.serving import PluginRoute, PluginSummary, RouteContext, ServerExtensions
from quire_serving.app import create_app, create_routes
from quire_serving.error_answers import ERROR_STATUSES
from quire_serving.state import ServerState

PLUGINS = (PluginSummary("hello", "quire-hello", "1.0", "says hello", True),)


def client_of(state: ServerState) -> TestClient:
    return TestClient(create_app(state), raise_server_exceptions=False)


def state_with(*routes: PluginRoute, engine: FakeEngine | None = None) -> ServerState:
    state = state_of(engine or FakeEngine())
    return replace(state, extensions=ServerExtensions(routes=routes, plugins=PLUGINS))


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("hello " + scope["path_params"].get("who", ""))(scope, receive, send)


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("secret of the plugin")


def test_models_have_all_their_names() -> None:
    client = client_of(replace(state_of(FakeEngine()), model_names=("org/one", "two")))
    cards = client.get("/v1/models").json()["data"]
    assert [(card["id"], card["root"], card["max_model_len"]) for card in cards] == [
        ("org/one", "org/one", 1024),
        ("two", "org/one", 1024),
    ]
    assert client.get("/v1/models/org/one").json()["id"] == "org/one"
    error = client.get("/v1/models/three").json()["error"]
    assert (error["code"], error["type"]) == ("model_not_found", "not_found_error")


def test_probes_tell_the_process_from_the_engine() -> None:
    engine = FakeEngine()
    state = state_of(engine)
    client = client_of(state)
    assert client.get("/ready").status_code == 200
    engine.is_ready = False
    down = client.get("/ready")
    assert (down.status_code, down.json()["error"]["message"]) == (503, "it is down")
    assert down.headers["retry-after"]
    engine.is_ready, state.is_draining = True, True
    assert client.get("/ready").json()["error"]["code"] == "server_draining"
    assert client.get("/health").status_code == 200


def test_load_tells_the_queue() -> None:
    engine = FakeEngine()
    engine.num_waiting, engine.num_waiting_tokens = 3, 40
    client = client_of(state_of(engine, max_queued_requests=7, max_queued_tokens=99))
    load = client.get("/v1/load").json()
    assert load == client.get("/load").json()
    assert (load["num_waiting"], load["num_waiting_tokens"], load["server_load"]) == (3, 40, 3)
    assert (load["max_queued_requests"], load["max_queued_tokens"]) == (7, 99)


def test_plugins_are_listed_and_switched() -> None:
    engine = FakeEngine()
    client = client_of(state_with(PluginRoute("hello", "/x", ("GET",), lambda _: hello), engine=engine))
    [card] = client.get("/plugins").json()["plugins"]
    assert (card["name"], card["routes"]) == ("hello", ["/plugins/hello/x"])
    assert client.post("/v1/plugins/hello", json={"enabled": False}).status_code == 204
    assert engine.switched == [("hello", False)]
    assert (
        client.post("/v1/plugins/none", json={"enabled": False}).json()["error"]["code"] == "plugin_not_found"
    )
    assert client.post("/reset_prefix_cache").status_code == 204


def test_tokens_there_and_back() -> None:
    client = client_of(state_of(FakeEngine()))
    answer = client.post(
        "/tokenize", json={"prompt": "hi", "return_token_strs": True, "model": "fake"}
    ).json()
    assert answer == {"count": 2, "max_model_len": 1024, "tokens": [104, 105], "token_strs": ["h", "i"]}
    assert client.post("/detokenize", json={"tokens": [104, 105]}).json() == {"prompt": "hi"}
    chat = client.post("/tokenize", json={"messages": [{"role": "user", "content": "hi"}]}).json()
    assert "".join(map(chr, chat["tokens"])) == "<user>hi<assistant>"
    refusals = {
        ("/detokenize", "tokens"): {"tokens": [0x110000]},
        ("/detokenize", "tokens.1"): {"tokens": [1, -1]},
        ("/tokenize", "prompt"): {},
        ("/tokenize", "model"): {"model": "other", "prompt": "x"},
        ("/tokenize", "promt"): {"promt": "x"},
    }
    for (path, param), body in refusals.items():
        refused = client.post(path, json=body)
        assert refused.json()["error"]["param"] == param
        assert refused.status_code == (404 if param == "model" else 400)
    huge = client.post("/tokenize", json={"prompt": "x" * (1024 * 256 + 1)})
    assert huge.json()["error"]["code"] == "context_length_exceeded"


def test_every_error_has_one_shape() -> None:
    client = client_of(state_of(FakeEngine()))
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    as_json = {"Content-Type": "application/json"}
    answers = {
        (404, "not_found"): client.get("/v2/nothing"),
        (405, "method_not_allowed"): client.delete("/health"),
        (400, "invalid_request"): client.post("/tokenize", content=b"{", headers=as_json),
        (415, "unsupported_media_type"): client.post("/tokenize", content=b"{}", headers=form),
    }
    for (status, code), answer in answers.items():
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, code)
        assert set(error) == {"message", "type", "param", "code"}
    assert answers[405, "method_not_allowed"].headers["allow"] == "GET"


def test_what_nobody_expected_is_logged_and_not_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine()
    client = client_of(state_of(engine))
    monkeypatch.setattr(engine, "status", lambda: 1 / 0)
    logging.getLogger("quire").propagate = True
    answer = client.get("/load")
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "internal error")
    assert answer.headers["x-request-id"] in caplog.text and "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("has_keys", [False, True])
def test_the_schema_tells_of_every_error(has_keys: bool) -> None:
    schema = create_routes(state_of(FakeEngine()), has_keys=has_keys).openapi()
    num_operations = 0
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            num_operations += 1
            responses = operation["responses"]
            assert "422" not in responses
            assert any(status.startswith("2") for status in responses) or path == "/v1/embeddings", path
            for status in ERROR_STATUSES:
                body = responses[str(status)]["content"]["application/json"]["schema"]
                assert body == {"$ref": "#/components/schemas/ErrorAnswer"}, (path, status)
    assert num_operations >= 15
    assert "HTTPValidationError" not in str(schema)
    assert ("securitySchemes" in schema["components"]) == has_keys


def test_plugins_serve_routes_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    contexts: list[RouteContext] = []

    def factory(context: RouteContext) -> object:
        contexts.append(context)
        return hello

    state = state_with(
        PluginRoute("hello", "/greet/{who}", ("GET",), factory, options="mine"),
        PluginRoute("hello", "/broken", ("POST",), lambda _: broken),
    )
    client = client_of(state)
    assert client.get("/plugins/hello/greet/you").text == "hello you"
    assert (contexts[0].client, contexts[0].options) == (state.client, "mine")
    assert client.post("/plugins/hello/greet/you").status_code == 405
    logging.getLogger("quire").propagate = True
    failed = client.post("/plugins/hello/broken")
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "plugin_failed")
    assert "secret" not in failed.text and "plugin 'hello' failed" in caplog.text


def test_routes_of_plugins_that_collide_are_refused() -> None:
    one = PluginRoute("a", "/x", ("GET", "POST"), lambda _: hello)
    with pytest.raises(ConfigError, match="POST /plugins/a/x is registered twice"):
        create_app(state_with(one, PluginRoute("a", "/x", ("POST",), lambda _: hello)))
    create_app(state_with(one, PluginRoute("a", "/x", ("PUT",), lambda _: hello)))
    with pytest.raises(ConfigError, match="begins with /"):
        create_app(state_with(PluginRoute("a", "x", ("GET",), lambda _: hello)))
    with pytest.raises(ConfigError, match="must give an ASGI application"):
        create_app(state_with(PluginRoute("a", "/x", ("GET",), lambda _: 3)))
