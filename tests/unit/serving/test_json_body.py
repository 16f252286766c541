"""JSON of requests: what is refused before it is parsed, and what of it is not JSON."""

from __future__ import annotations

import json
import time

import pytest
from serving_app import FakeServer

from quire_serving.errors import ApiError
from quire_serving.json_body import MAX_CONTAINERS, MAX_STRINGS, MAX_VALUES, check_shape, parse_json


@pytest.fixture(scope="module")
def server() -> FakeServer:
    return FakeServer.of()


@pytest.mark.parametrize(
    ("body", "is_refused"),
    [
        (b"[" * 64 + b"]" * 64, False),
        (b"[" * 65 + b"]" * 65, True),
        (b'{"a":' * 65 + b"1" + b"}" * 65, True),
        (b'{"a":[' * 33 + b"1" + b"]}" * 33, True),
        (b"[" * 60_000, True),
        (b'"' + b"[" * 1000 + b'"', False),
        (b'"\\"' + b"[" * 1000 + b'"', False),
        (b'["\\\\\\"' + b"[" * 1000 + b'"]', False),
        (b"[" + b"[],{}," * 1000 + b"1]", False),
        (b'{"a":"\\\\"}' + b"[" * 65 + b"]" * 65, True),
    ],
)
def test_nesting_is_bounded(body: bytes, is_refused: bool) -> None:
    if not is_refused:
        check_shape(body)
        return
    with pytest.raises(ApiError) as caught:
        check_shape(body)
    assert (caught.value.status, caught.value.code) == (400, "json_too_deep")


@pytest.mark.parametrize(
    ("item", "limit"), [(b"[]", MAX_CONTAINERS - 1), (b'""', MAX_STRINGS), (b"1", MAX_VALUES + 1)]
)
def test_values_are_counted(item: bytes, limit: int) -> None:
    check_shape(b"[" + b",".join([item] * limit) + b"]")
    with pytest.raises(ApiError) as caught:
        check_shape(b"[" + b",".join([item] * (limit + 1)) + b"]")
    assert caught.value.code == "json_too_large"
    in_a_string = json.dumps([item.decode() * (limit + 1) + "," * MAX_VALUES]).encode()
    check_shape(in_a_string)


@pytest.mark.parametrize("unit", [b'\\"', b"[]", b'"', b"[", b'"[', b'{"a":"b"},', b"\\", b"[{", b"1,"])
def test_the_check_is_linear_in_the_body(unit: bytes) -> None:
    begin_s = time.perf_counter()
    for opener in (b'"', b"[" * 65, b""):
        body = opener + unit * (2**21 // len(unit))
        try:
            check_shape(body)
        except ApiError:
            continue
    assert time.perf_counter() - begin_s < 1.5  # a quadratic one takes minutes


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (b'{"prompt": "a", "prompt": "b"}', "duplicate_field", "'prompt'"),
        (b'{"prompt": "a", "logit_bias": {"5": 1, "\\u0035": 2}}', "duplicate_field", "'5'"),
        (b'{"prompt": "\xff"}', "invalid_request", "UTF-8 at byte 12"),
        (b'{"prompt": "a", "seed": ' + b"1" * 5000 + b"}", "invalid_request", "4300 digits"),
        (b'{"prompt": "a",}', "invalid_request", "line 1 column"),
        (b'{"prompt": "a"', "invalid_request", "line 1 column"),
        ('{"prompt": "a"}'.encode("utf-16"), "invalid_request", "UTF-8"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/generate", "/tokenize"])
def test_what_is_no_json_is_told_why(
    server: FakeServer, path: str, body: bytes, code: str, said: str
) -> None:
    answer = server.client.post(path, content=body, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, code) and said in error["message"]


def test_a_byte_order_mark_is_no_harm() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}


@pytest.mark.parametrize(
    ("path", "body", "param", "said"),
    [
        ("/v1/completions", {"prompt": "a", "stop": [""]}, "stop.0", "at least 1 character"),
        ("/v1/completions", {"prompt": "a", "stop": 5}, "stop", "string; or: "),
        ("/v1/completions", {"prompt": 5}, "prompt", "list"),
        ("/v1/completions", {"prompt": [1, -1]}, "prompt.1", "greater than or equal to 0"),
        ("/v1/completions", {"prompt": "a", "logit_bias": {"5": "x"}}, "logit_bias.5", "number"),
        ("/v1/completions", {}, "prompt", "required"),
        ("/v1/chat/completions", {"messages": [{"content": "a"}]}, "messages.0.role", "required"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
            "messages.0.content.0.text",
            "string",
        ),
        ("/v1/responses", {"input": [{"role": "user", "content": 5}]}, "input.0.content", "list"),
        ("/v1/responses", {"input": [{"role": "user"}]}, "input.0.content", "required"),
        ("/v1/responses", {"input": 5}, "input", "list"),
    ],
)
def test_errors_name_fields_as_the_client_wrote_them(
    server: FakeServer, path: str, body: dict[str, object], param: str, said: str
) -> None:
    error = server.client.post(path, json=body).json()["error"]
    assert error["param"] == param and error["message"].startswith(f"{param}: ") and said in error["message"]
