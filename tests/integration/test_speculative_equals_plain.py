"""Output with drafts is output without: every drafter, length, cache state, budget, pool, kind of request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from speculation_cases import (
    DRAFTERS,
    LENGTHS,
    SAMPLING,
    Ask,
    Case,
    Prepared,
    assert_exercised,
    assert_same,
    make_asks,
    num_certain,
    pairwise_cases,
    prepare,
    random_prompts,
    run_case,
    write_disturbed,
)
from test_greedy_equals_transformers import FAMILIES, TRAITS

import quire_models
from quire import LLM, SamplingParams

MARGIN = 1e-4
MODELS = (*FAMILIES, "tiny")
TEXTS = (
    "Repeat: the quick brown fox jumps over the lazy dog.",
    "Replace dog by cat: the dog sees a dog and the dog barks.",
    "What is the capital of France?",
    "Hello!",
    "Count the letters in banana.",
    "12 + 30 =",
    "Give me JSON: name Anna, age 31, city Rome.",
    "Spell the word table.",
)
QUICK_COUNT = {"llama": 24, "qwen3": 24, "gpt2": 24, "tiny": 13}  # each kind of request
QUICK = pairwise_cases(model=tuple(QUICK_COUNT), chunk=(7, 16, None))
Preparing = Callable[[str, str, int], Prepared]


@pytest.fixture(scope="module")
def preparing(tmp_path_factory: pytest.TempPathFactory) -> Preparing:
    """A model with so many requests and what they give, made once."""
    root = tmp_path_factory.mktemp("models")
    folders: dict[str, Path] = {"tiny": Path(quire_models.__file__).parent / "tiny"}
    made: dict[tuple[str, str, int], Prepared] = {}

    def get(model: str, sampling: str, count: int) -> Prepared:
        key = (model, sampling, count)
        if model not in folders:
            folders[model] = FAMILIES[model](root / model, **TRAITS[model])
        if key not in made:
            draft_folder = write_disturbed(folders[model], root / f"{model}-disturbed")
            is_tiny = model == "tiny"
            asks = make_asks(_tiny_prompts(count) if is_tiny else random_prompts(count), sampling, is_tiny)
            made[key] = prepare(folders[model], asks, is_tiny, draft_folder)
        return made[key]

    return get


def _tiny_prompts(count: int) -> list[list[int]]:
    with LLM("tiny", max_model_len=64) as llm:
        tokenizer = llm.get_tokenizer()
    texts = [TEXTS[index % len(TEXTS)] + " again" * (index // len(TEXTS) % 5) for index in range(count)]
    return [tokenizer.encode(text)[:60] for text in texts]


def _check(prepared: Prepared, case: Case) -> None:
    outcome = run_case(prepared, case)
    assert_same(outcome.outputs, prepared.expected)
    assert_exercised(case, outcome)


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_pairwise(preparing: Preparing, case: Case) -> None:
    _check(preparing(case.model, case.sampling, QUICK_COUNT[case.model]), case)


def nightly_cases() -> list[Case]:
    """Every drafter, length, way of sampling and model; all pairs of the other settings in turn."""
    ways = pairwise_cases(model=["llama"], sampling=["greedy"], drafter=["ngram"], max_drafts=[1])
    combinations = list(product(SAMPLING, DRAFTERS, LENGTHS, MODELS))
    return [
        replace(
            ways[(index + index // len(MODELS)) % len(ways)],
            sampling=sampling,
            drafter=drafter,
            max_drafts=length,
            model=model,
        )
        for index, (sampling, drafter, length, model) in enumerate(combinations)
    ]


@pytest.mark.nightly
@pytest.mark.parametrize("case", nightly_cases(), ids=str)
def test_every_drafter_and_length_over_500_prompts(preparing: Preparing, case: Case) -> None:
    _check(preparing(case.model, case.sampling, 26 if case.model == "tiny" else 79), case)


@pytest.mark.parametrize("model", ["llama", "tiny"])
@pytest.mark.parametrize("drafter", ["oracle", "ngram"])
def test_float32_where_the_choice_is_clear(preparing: Preparing, model: str, drafter: str) -> None:
    given = preparing(model, "greedy", QUICK_COUNT[model])
    plain = [
        Ask(ask.prompt, SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=2))
        for ask in given.asks
    ]
    prepared = prepare(given.folder, plain, False, given.draft_folder, "float32")
    outcome = run_case(prepared, Case(model, "greedy", drafter, 5, False, 16, "cold", 4, "ample"))
    num_compared = 0
    for found, expected in zip(outcome.outputs, prepared.expected, strict=True):
        [choice], [wanted] = found.outputs, expected.outputs
        count = num_certain(wanted, MARGIN)
        assert choice.token_ids[:count] == wanted.token_ids[:count]
        num_compared += count
    assert num_compared > 0.9 * 24 * len(plain)
    assert outcome.drafts["accepted"] > 0 < outcome.drafts["rejected"]
