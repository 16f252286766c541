"""A request that goes on elsewhere after any of its tokens ends as it would have, and deltas add up to the output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import quire_models
from quire import LLM, SamplingParams
from quire.api.errors import PromptError, SamplingParamsError
from quire.api.outputs import CompletionOutput, OutputDelta, PositionLogprobs
from quire.api.request import SamplingParams as Params

TINY = Path(quire_models.__file__).parent / "tiny"
PROMPT = "Repeat: the quick brown fox jumps over the lazy dog."
CASES: dict[str, dict[str, object]] = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 0.9, "top_p": 0.9, "seed": 3},
    "penalties": {"temperature": 0.7, "seed": 4, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "min_tokens": 9},
    "stop string": {"temperature": 0.0, "stop": ["fox", "zzz"], "include_stop_str_in_output": True},
    "logprobs": {"temperature": 0.8, "seed": 5, "logprobs": 2, "prompt_logprobs": 1},
    "choices": {"temperature": 1.0, "seed": 6, "n": 3, "logprobs": 0},
}  # fmt: skip


@pytest.fixture(scope="module", params=["plain", "ngram"])
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    config = None if request.param == "plain" else {"method": "ngram", "adaptive": False}
    with LLM(TINY, dtype="float64", max_model_len=128, speculative_config=config) as engine:
        yield engine


def params(case: str) -> Params:
    return SamplingParams(max_tokens=12, **CASES[case])  # type: ignore[arg-type]  # by name


class Collected:
    """What deltas add up to."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[PositionLogprobs]] = {}
        self.ends: dict[int, tuple[object, object]] = {}
        self.prompt_logprobs: object = None

    def add(self, delta: OutputDelta) -> None:
        for choice in delta.choices:
            assert choice.index not in self.ends, "something came after the end"
            self.texts[choice.index] = self.texts.get(choice.index, "") + choice.text
            self.tokens.setdefault(choice.index, []).extend(choice.token_ids)
            self.logprobs.setdefault(choice.index, []).extend(choice.logprobs or ())
            assert choice.logprobs is None or len(choice.logprobs) == len(choice.token_ids)
            if choice.finish_reason is not None:
                self.ends[choice.index] = (choice.finish_reason, choice.stop_reason)
        self.prompt_logprobs = delta.prompt_logprobs or self.prompt_logprobs


def run(
    llm: LLM, case: str, collected: Collected, num_steps: int, resumed: object = None
) -> list[list[int] | None]:
    """Some steps, all deltas taken; what each choice has by then, None where it has ended."""
    given = params(case)
    name = llm.engine.add_request(PROMPT, given, resumed=resumed)  # type: ignore[arg-type]  # of this function
    try:
        for _ in range(num_steps):
            if llm.engine.is_finished(name):
                break
            llm.engine.step()
            delta = llm.engine.take_delta(name)
            collected.add(delta)
            assert delta.finished == llm.engine.is_finished(name) == (delta.metrics is not None)
            cached = llm.engine.output(name).num_cached_tokens
            assert cached <= len(llm.get_tokenizer().encode(PROMPT))
        assert not llm.engine.take_delta(name).choices
    finally:
        llm.engine.discard(name)
    return [None if i in collected.ends else collected.tokens.get(i, []) for i in range(given.n)]


def assert_is(collected: Collected, outputs: list[CompletionOutput], has_logprobs: bool) -> None:
    for choice in outputs:
        assert collected.tokens[choice.index] == choice.token_ids
        assert collected.texts[choice.index] == choice.text
        assert collected.ends[choice.index] == (choice.finish_reason, choice.stop_reason)
        if has_logprobs:
            found = [
                value.logprob for entries in collected.logprobs[choice.index] for value in entries.values()
            ]
            wanted = [value.logprob for entries in choice.logprobs or () for value in entries.values()]
            assert found == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_deltas_add_up_to_the_output(llm: LLM, case: str) -> None:
    [expected] = llm.generate([PROMPT], params(case), use_tqdm=False)
    collected = Collected()
    run(llm, case, collected, 100)
    assert_is(collected, expected.outputs, "logprobs" in CASES[case])
    assert (collected.prompt_logprobs is not None) == ("prompt_logprobs" in CASES[case])
    if collected.prompt_logprobs is not None:
        assert collected.prompt_logprobs == expected.prompt_logprobs


@pytest.mark.parametrize("case", CASES)
def test_goes_on_after_every_token(llm: LLM, case: str) -> None:
    [expected] = llm.generate([PROMPT], params(case), use_tqdm=False)
    most = max(len(choice.token_ids) for choice in expected.outputs)
    num_resumed = 0
    for num_steps in range(most):
        collected = Collected()
        resumed = run(llm, case, collected, num_steps)
        if any(output is not None for output in resumed):
            run(llm, case, collected, 100, resumed)
            num_resumed += 1
        assert_is(collected, expected.outputs, "logprobs" in CASES[case])
    assert num_resumed > 2
    assert llm.engine.get_metrics()


def test_refuses_what_cannot_go_on(llm: LLM) -> None:
    engine = llm.engine
    for given, resumed in (
        (SamplingParams(max_tokens=4, temperature=0.0), [[1], [2]]),
        (SamplingParams(max_tokens=4, temperature=0.0), [None]),
        (SamplingParams(max_tokens=4, temperature=0.0), [[1, 2, 3, 4]]),
        (SamplingParams(max_tokens=4, temperature=0.0), [[-1]]),
        (SamplingParams(max_tokens=4, temperature=0.0), [[10**6]]),
        (SamplingParams(max_tokens=4, temperature=0.0), "ab"),
        (SamplingParams(max_tokens=4, temperature=0.0), ["ab"]),
        (SamplingParams(max_tokens=4, temperature=0.0), [5]),
        (SamplingParams(max_tokens=9, temperature=0.0, stop_token_ids=[7]), [[5, 7]]),
        (
            SamplingParams(max_tokens=99, temperature=0.0, stop=["fox"]),
            [llm.get_tokenizer().encode("a fox runs")],
        ),
    ):
        with pytest.raises(PromptError, match="resumed"):
            engine.add_request(PROMPT, given, resumed=resumed)
    for output in ([1.5], ["a"], [True]):
        with pytest.raises(PromptError, match="integers"):
            engine.add_request(PROMPT, SamplingParams(max_tokens=4, temperature=0.0), resumed=[output])  # type: ignore[list-item]  # to be refused
    with pytest.raises(SamplingParamsError, match="seed"):
        engine.add_request(PROMPT, SamplingParams(max_tokens=4), resumed=[[1]])
    assert not engine.has_unfinished
