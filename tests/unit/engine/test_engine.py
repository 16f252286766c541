"""The engine over a model that is a hash: requests in, steps, outputs, refusals, errors."""

from __future__ import annotations

import pytest

from quire.api.errors import (
    CapacityError,
    EngineClosedError,
    PromptError,
    SamplingParamsError,
    StepError,
    TokenizerError,
)
from quire.api.request import SamplingParams

BAD_REQUESTS = [
    ([], {}, PromptError, "empty"),
    ([26], {}, PromptError, "token id 26"),
    ([1] * 32, {}, PromptError, "32 tokens, the context holds 32"),
    (7.5, {}, PromptError, "got float"),
    ([1], {"stop_token_ids": [26]}, SamplingParamsError, "stop_token_ids"),
    ([1], {"logprobs": 27}, SamplingParamsError, "logprobs=27"),
    ([1], {"temperature": float("nan")}, SamplingParamsError, "temperature"),
    ([1], {"max_tokens": 0}, SamplingParamsError, "max_tokens=0"),
]


def changed_params(values: dict[str, object]) -> SamplingParams:
    params = SamplingParams(temperature=0.0)
    for name, value in values.items():
        setattr(params, name, value)
    return params


@pytest.mark.parametrize(("prompt", "values", "error", "words"), BAD_REQUESTS)
def test_a_bad_request_is_refused_and_the_others_go_on(
    make_engine, finish_all, expected_tokens, greedy, prompt, values, error, words
):
    engine = make_engine()
    first = engine.add_request([1, 2, 3], greedy)
    engine.step()
    with pytest.raises(error, match=words):
        engine.add_request(prompt, changed_params(values))
    last = engine.add_request([4, 5], greedy)
    finish_all(engine)
    for name, tokens in ((first, [1, 2, 3]), (last, [4, 5])):
        output = engine.pop_output(name)
        assert output.outputs[0].token_ids == expected_tokens(tokens, 5)
        assert (output.outputs[0].finish_reason, output.error) == ("length", None)
    engine._scheduler.check_invariants()


def test_a_request_that_can_never_fit_is_refused_with_the_numbers(make_engine, finish_all, greedy):
    engine = make_engine(num_blocks=2, max_model_len=32)
    with pytest.raises(CapacityError, match="9 tokens and 1 output token can never fit.*at most 9 tokens"):
        engine.add_request([1] * 9, greedy)
    name = engine.add_request([1] * 8, greedy)  # fits, with one token of output
    finish_all(engine)
    assert len(engine.output(name).outputs[0].token_ids) == 1


def test_of_a_request_with_choices_all_or_none_are_queued(make_engine, finish_all, greedy):
    engine = make_engine()
    engine.add_request([1], greedy, request_id="a/2")
    with pytest.raises(PromptError, match="'a/2' is in use"):
        engine.add_request([1, 2], SamplingParams(n=3), request_id="a")
    assert engine._scheduler.num_waiting == 1
    finish_all(engine)
    assert engine.output("a/2").outputs[0].finish_reason == "length"
    with pytest.raises(PromptError, match="'a' is not known"):
        engine.output("a")
    engine.discard("a/2")
    assert len({choice.index for choice in take(engine, finish_all, n=3).outputs}) == 3


def take(engine, finish_all, **params):
    name = engine.add_request([1, 2], SamplingParams(max_tokens=2, **params))
    finish_all(engine)
    return engine.pop_output(name)


def test_ids_are_the_caller_s_or_drawn_beside_them(make_engine, greedy):
    engine = make_engine()
    assert engine.add_request([1], greedy, request_id="request-0") == "request-0"
    drawn = [engine.add_request([1], greedy) for _ in range(3)]
    assert len({"request-0", *drawn}) == 4
    with pytest.raises(PromptError, match="'request-0' is in use"):
        engine.add_request([1], greedy, request_id="request-0")
    engine.discard("request-0")
    engine.add_request([1], greedy, request_id="request-0")


def test_a_step_names_what_changed(make_engine, greedy):
    engine = make_engine(budget=4)
    long = engine.add_request([1] * 6, greedy)
    assert engine.step() == []  # the first part of the prompt
    short = engine.add_request([2], greedy)
    assert sorted(engine.step()) == sorted([long, short])
    assert not engine.is_finished(long)
    assert [len(engine.output(name).outputs[0].token_ids) for name in (long, short)] == [1, 1]


def test_an_aborted_request_stays_readable_and_a_discarded_one_does_not(make_engine, finish_all, greedy):
    engine = make_engine()
    name = engine.add_request([1, 2], greedy)
    engine.step()
    engine.abort(name)
    engine.abort(name)
    engine.abort("unknown")
    assert engine.is_finished(name) and not engine.has_unfinished
    assert engine.output(name).outputs[0].finish_reason == "abort"
    engine.discard(name)
    engine.discard(name)
    with pytest.raises(PromptError, match="not known"):
        engine.output(name)
    assert engine._scheduler.block_manager.usage().num_used_blocks == 0


def test_text_comes_from_the_tokenizer_and_is_missed_without(make_engine, finish_all, greedy):
    engine = make_engine()
    name = engine.add_request("bc", greedy)
    finish_all(engine)
    output = engine.output(name)
    assert output.prompt == "bc"
    assert output.outputs[0].text == engine.require_tokenizer().decode(output.outputs[0].token_ids)
    bare = make_engine(has_text=False)
    for ask in (bare.require_tokenizer, lambda: bare.add_request("bc", greedy)):
        with pytest.raises(TokenizerError, match="skip_tokenizer_init"):
            ask()


def test_unseeded_requests_draw_seeds_of_their_own(make_engine):
    engine = make_engine()
    names = [engine.add_request([1], SamplingParams(n=2)) for _ in range(2)]
    seeds = [request.seed for name in names for request in engine._book.require(name).requests]
    assert len(set(seeds)) == 4
    again = make_engine()
    again.add_request([1], SamplingParams(n=2))
    assert [request.seed for request in again._book.require("request-0").requests] == seeds[:2]


def test_a_failed_execution_ends_its_requests_and_spares_those_that_wait(
    make_engine, finish_all, expected_tokens, greedy, monkeypatch
):
    engine = make_engine(budget=4)
    first = engine.add_request([1, 2, 3, 4], greedy)
    waiting = engine.add_request([5, 6], greedy)
    with monkeypatch.context() as patch:
        patch.setattr(engine._executor.runner, "run", planted)
        assert engine.step() == [first]
    output = engine.output(first)
    assert output.outputs[0].finish_reason == "error"
    assert isinstance(output.error, StepError) and isinstance(output.error.__cause__, ValueError)
    assert not engine.is_finished(waiting)
    finish_all(engine)
    assert engine.output(waiting).outputs[0].token_ids == expected_tokens([5, 6], 5)
    engine._scheduler.check_invariants()


def planted(*args: object, **keywords: object) -> None:
    raise ValueError("planted")


def test_a_result_of_another_step_ends_the_step_s_requests(make_engine, finish_all, greedy, monkeypatch):
    engine = make_engine()
    name = engine.add_request([1, 2], greedy)
    runner, run = engine._executor.runner, engine._executor.runner.run
    with monkeypatch.context() as patch:
        patch.setattr(runner, "run", lambda plan: type(run(plan))(plan.step_id + 1, []))
        assert engine.step() == [name]
    assert "its result is of step 1" in str(engine.output(name).error)
    engine._scheduler.check_invariants()


def test_a_closed_engine_refuses_all_work(make_engine, greedy):
    engine = make_engine()
    engine.add_request([1], greedy)
    engine.close()
    engine.close()
    assert engine._executor.runner.is_closed and not engine.has_unfinished
    for call in (engine.step, lambda: engine.add_request([1], greedy)):
        with pytest.raises(EngineClosedError, match="build a new LLM"):
            call()
