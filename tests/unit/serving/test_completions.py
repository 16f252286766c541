"""/v1/completions over a fake engine: OpenAI's shapes, streams, refusals."""

from __future__ import annotations

import pytest
from fake_engine import FakeEngine, deltas_of
from openai.types import Completion
from serving_app import FakeServer

from quire.api.client import EngineRequest
from quire.api.errors import PromptError, StepError
from quire.api.outputs import OutputDelta

PATH = "/v1/completions"


def test_a_prompt_gets_openais_object_with_the_defaults_of_model_and_server() -> None:
    server = FakeServer.of(FakeEngine(default_sampling_params={"temperature": 0.5, "max_tokens": 99}))
    body = server.ok(PATH, model="fake", prompt="abc")
    answer = Completion.model_validate(body)
    assert (answer.object, answer.model, answer.choices[0].text) == ("text_completion", "fake", "Hello world")
    assert answer.choices[0].finish_reason == "stop" and answer.choices[0].logprobs is None
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        3,
        2,
        5,
    )
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    (request,) = server.engine.requests
    assert (request.text, list(request.token_ids)) == ("abc", [97, 98, 99])
    assert (request.params.temperature, request.params.max_tokens, request.params.n) == (0.5, 16, 1)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [[97, 98]]),
        (["a", "b"], [[97], [98]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
    ],
)
def test_prompts_come_in_four_forms(prompt: object, expected: list[list[int]]) -> None:
    server = FakeServer.of()
    body = server.ok(PATH, prompt=prompt, n=2)
    assert [list(request.token_ids) for request in server.engine.requests] == expected
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * len(expected)))
    assert body["usage"]["completion_tokens"] == 4 * len(expected)


def test_a_stream_adds_up_to_the_answer_and_tells_usage_last() -> None:
    server = FakeServer.of(FakeEngine(["Hel", "lo"]))
    events = server.events(PATH, prompt=["a", "b"], n=2, stream_options={"include_usage": True})
    assert events[-1] == "[DONE]"
    texts = ["", "", "", ""]
    for chunk in events[:-2]:
        parsed = Completion.model_validate(chunk | {"choices": []})
        assert parsed.object == "text_completion" and chunk["usage"] is None
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == ["Hello"] * 4
    assert events[-2]["choices"] == [] and events[-2]["usage"]["total_tokens"] == 2 + 8
    ids = {chunk["id"] for chunk in events[:-1]}
    assert len(ids) == 1 and ids.pop().startswith("cmpl-")
    continuous = server.events(PATH, prompt="a", stream_options={"continuous_usage_stats": True})
    assert [chunk["usage"]["completion_tokens"] for chunk in continuous[:-1]] == [1, 2]


def test_pieces_without_text_make_no_events() -> None:
    engine = FakeEngine(lambda request: [_without_text(request), *deltas_of(request, ["x"])])
    events = FakeServer.of(engine).events(PATH, prompt="a")
    assert [chunk["choices"][0]["text"] for chunk in events[:-1]] == ["x"]


def _without_text(request: EngineRequest) -> OutputDelta:
    delta = deltas_of(request, ["x"])[0]
    delta.finished, delta.choices[0].text, delta.choices[0].finish_reason = False, "", None
    return delta


@pytest.mark.parametrize("is_stream", [False, True])
def test_echo_with_logprobs_covers_prompt_and_output(is_stream: bool) -> None:
    server = FakeServer.of(FakeEngine(["x", "yz"]))
    fields = {"prompt": "ab", "echo": True, "logprobs": 1, "max_tokens": 5}
    if is_stream:
        choices = [chunk["choices"][0] for chunk in server.events(PATH, **fields)[:-1]]
    else:
        choices = server.ok(PATH, **fields)["choices"]
    assert "".join(choice["text"] for choice in choices) == "abxyz"
    merged: dict[str, list[object]] = {
        key: [entry for choice in choices for entry in choice["logprobs"][key]]
        for key in choices[0]["logprobs"]
    }
    assert merged["tokens"] == ["a", "b", "x", "yz"]
    assert merged["text_offset"] == [0, 1, 2, 3]
    assert merged["token_logprobs"] == [None, -0.5, -0.25, -0.25]
    assert merged["top_logprobs"] == [None, {"b": -0.5}, {"x": -0.25, "a": -2.0}, {"yz": -0.25, "a": -2.0}]
    params = server.engine.requests[0].params
    assert (params.logprobs, params.prompt_logprobs) == (1, 1)


def test_max_tokens_0_scores_the_prompt_only() -> None:
    server = FakeServer.of(FakeEngine(["x"]))
    body = server.ok(PATH, prompt="ab", echo=True, logprobs=0, max_tokens=0)
    assert body["choices"][0]["text"] == "ab" and body["choices"][0]["logprobs"]["tokens"] == ["a", "b"]
    assert body["usage"]["completion_tokens"] == 0
    assert server.refused(PATH, prompt="ab", max_tokens=0)[2] == "max_tokens"


def test_fields_of_vllm_reach_the_engine() -> None:
    server = FakeServer.of()
    fields = {
        "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "stop_token_ids": [1], "ignore_eos": True,
        "min_tokens": 2, "include_stop_str_in_output": True, "skip_special_tokens": False, "seed": 7,
        "spaces_between_special_tokens": False, "stop": ["\n"], "temperature": 0.7, "top_p": 0.9,
        "presence_penalty": 0.1, "frequency_penalty": -0.1,
    }  # fmt: skip
    body = server.ok(
        PATH, prompt="a", prompt_logprobs=0, logit_bias={"5": 1}, vllm_xargs={"p": [1]}, priority=3,
        cache_salt="s-1", request_id="mine", user="u", best_of=1, return_token_ids=True, bad_words=[],
        use_beam_search=False, length_penalty=1.0, suffix="", **fields,
    )  # fmt: skip
    (request,) = server.engine.requests
    for name, value in fields.items():
        assert getattr(request.params, name) == value, name
    assert request.params.logit_bias == {5: 1.0} and request.params.extra_args == {"p": [1]}
    assert (request.priority, request.salt) == (3, ":s-1") and request.request_id != "mine"
    choice = body["choices"][0]
    assert (choice["token_ids"], choice["prompt_token_ids"]) == ([ord("H"), ord(" ")], [97])
    assert choice["prompt_logprobs"] == [None]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"suffix": "x"}, "suffix_unsupported", "suffix"),
        ({"best_of": 3}, "best_of_unsupported", "best_of"),
        ({"use_beam_search": True}, "beam_search_unsupported", "use_beam_search"),
        ({"guided_json": {"a": 1}}, "unsupported_parameter", "guided_json"),
        ({"structured_outputs": {"regex": "a"}}, "unsupported_parameter", "structured_outputs"),
        ({"n": 17}, "invalid_sampling_params", "n"),
        ({"logprobs": 21}, "invalid_sampling_params", "logprobs"),
        ({"prompt_logprobs": -1}, "invalid_sampling_params", "prompt_logprobs"),
        ({"logit_bias": {"x": 1}}, "invalid_request", "logit_bias"),
        ({"min_tokens": 20}, "conflicting_parameters", "min_tokens"),
        ({"vllm_xargs": {"p": 2**64}}, "invalid_json_value", None),
        ({"prompt": "\ud800"}, "invalid_json_value", None),
        ({"stream_options": {"include_usage": True}}, "conflicting_parameters", "stream_options"),
        ({"stream": True, "prompt_logprobs": 1}, "conflicting_parameters", "prompt_logprobs"),
        ({"prompt": ["a"] * 257}, "too_many_prompts", "prompt"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    fields: dict[str, object], code: str, param: str | None
) -> None:
    server = FakeServer.of()
    assert server.refused(PATH, **{"prompt": "a", **fields}) == (400, code, param)
    assert not server.engine.requests


@pytest.mark.parametrize(
    "fields",
    [
        {"n": True}, {"temperature": 2.1}, {"temperature": True}, {"temperature": "1"}, {"top_p": 0},
        {"max_tokens": 1.5}, {"seed": 2**63}, {"stop": ["x"] * 17}, {"stop": "x" * 257}, {"stop": ""},
        {"logit_bias": {str(place): 1 for place in range(1025)}}, {"cache_salt": "a b"}, {"prompt": [True]},
        {"prompt": []}, {"prompt": [-1]}, {"prompt": [[1], "a"]}, {"temprature": 1}, {"prompt": None},
    ],
)  # fmt: skip
def test_malformed_fields_are_400(fields: dict[str, object]) -> None:
    engine = FakeEngine(lambda request: [PromptError("the prompt is empty")])
    assert FakeServer.of(engine).refused(PATH, **{"prompt": "a", **fields})[0] == 400


def test_not_a_number_is_no_number() -> None:
    answer = FakeServer.of().client.post(
        PATH, content='{"prompt": "a", "temperature": NaN}', headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400


def test_an_unknown_model_is_404() -> None:
    assert FakeServer.of().refused(PATH, model="other", prompt="a") == (404, "model_not_found", "model")


def test_the_engines_refusal_is_an_answer_in_streams_too() -> None:
    engine = FakeEngine(lambda request: [PromptError("the prompt is too long")])
    server = FakeServer.of(engine)
    assert server.refused(PATH, prompt="a")[:2] == (400, "invalid_prompt")
    assert server.refused(PATH, prompt=["a", "b"], stream=True)[:2] == (400, "invalid_prompt")


def test_an_error_in_the_middle_is_an_event_without_done() -> None:
    def script(request: EngineRequest) -> list[OutputDelta]:
        deltas = deltas_of(request, ["x", "y"], "error")
        deltas[-1].error = StepError("secret /path")
        return deltas

    server = FakeServer.of(FakeEngine(script))
    assert server.refused(PATH, prompt="a")[:2] == (500, "generation_failed")
    events = server.events(PATH, prompt="a")
    assert [event.get("error", {}).get("code") for event in events] == [None, "generation_failed"]
    assert "secret" not in str(events)


def test_an_abort_by_the_server_is_told() -> None:
    server = FakeServer.of(FakeEngine(lambda request: deltas_of(request, ["x", "y"], "abort")))
    assert server.refused(PATH, prompt="a")[:2] == (503, "request_aborted")
    assert server.events(PATH, prompt="a")[-1]["error"]["code"] == "request_aborted"


def test_several_keys_keep_their_caches_apart() -> None:
    server = FakeServer.of(api_key=("one", "two"))
    for key in ("one", "two", "one"):
        headers = {"Authorization": f"Bearer {key}"}
        body = server.client.post(PATH, json={"prompt": "a", "cache_salt": "s"}, headers=headers).json()
        assert "prompt_tokens_details" not in body["usage"]
    first, second, third = (request.salt for request in server.engine.requests)
    assert first == third != second and first.endswith(":s")


def test_token_ids_of_a_stream_add_up_and_the_prompt_s_come_once() -> None:
    server = FakeServer.of(FakeEngine(["Hel", "lo"]))
    whole = server.ok(PATH, prompt=["ab", "c"], n=2, return_token_ids=True)
    events = server.events(PATH, prompt=["ab", "c"], n=2, return_token_ids=True)
    ids: list[list[int]] = [[], [], [], []]
    prompts: list[list[list[int]]] = [[], [], [], []]
    for chunk in events[:-1]:
        (choice,) = chunk["choices"]
        ids[choice["index"]] += choice["token_ids"]
        if "prompt_token_ids" in choice:
            prompts[choice["index"]].append(choice["prompt_token_ids"])
    assert ids == [choice["token_ids"] for choice in whole["choices"]] and all(ids)
    assert prompts == [[choice["prompt_token_ids"]] for choice in whole["choices"]]
    assert [one[0] for one in prompts] == [[97, 98], [97, 98], [99], [99]]
