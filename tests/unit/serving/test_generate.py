"""/generate, as the notes call it."""

from __future__ import annotations

import json

from serving_app import FakeServer


def test_texts_begin_with_the_prompt() -> None:
    assert FakeServer.of().ok("/generate", prompt="San", n=2, temperature=0.5) == {
        "text": ["SanHello world"] * 2
    }


def test_a_stream_tells_all_there_is_so_far() -> None:
    assert FakeServer.of().events("/generate", prompt="A") == [
        {"text": ["AHello"]},
        {"text": ["AHello world"]},
        "[DONE]",
    ]


def test_the_request_of_the_notes_is_read_as_curl_sends_it() -> None:
    server = FakeServer.of()
    wanted = {"prompt": "San Francisco is a", "use_beam_search": True, "n": 4, "temperature": 0}
    form = {"content-type": "application/x-www-form-urlencoded"}
    answer = server.client.post("/generate", content=json.dumps(wanted), headers=form)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "beam_search_unsupported")
    del wanted["use_beam_search"]
    answer = server.client.post("/generate", content=json.dumps(wanted), headers=form)
    assert answer.json()["text"] == ["San Francisco is aHello world"] * 4
    assert server.client.post("/generate", content="no json", headers=form).status_code == 400


def test_unknown_fields_are_refused() -> None:
    assert FakeServer.of().refused("/generate", prompt="a", promt="b")[0] == 400
