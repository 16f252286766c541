"""Token equality with transformers over chunk sizes, cache states, block sizes and preemption."""

from __future__ import annotations

from pathlib import Path

import pytest
from equivalence import (
    Case,
    Job,
    all_cases,
    assert_exercised,
    make_jobs,
    pairwise_cases,
    reference_tokens,
    run_case,
)

from quire.testing.tiny_models import write_tiny_gpt2, write_tiny_llama, write_tiny_qwen2

FAMILIES = {"llama": write_tiny_llama, "qwen2": write_tiny_qwen2, "gpt2": write_tiny_gpt2}
Prepared = tuple[Path, list[Job], list[list[int]]]


def _prepare(family: str, folder: Path, count: int) -> Prepared:
    limit = {"n_positions": 128} if family == "gpt2" else {"max_position_embeddings": 128}
    FAMILIES[family](folder, **limit)
    jobs = make_jobs(count, vocab_size=96, seed=1)
    return folder, jobs, reference_tokens(folder, jobs)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return _prepare(request.param, tmp_path_factory.mktemp(request.param), 20)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def full(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return _prepare(request.param, tmp_path_factory.mktemp(request.param), 200)


@pytest.mark.parametrize("case", pairwise_cases(), ids=str)
def test_pairwise(small: Prepared, case: Case) -> None:
    _check(small, case)


@pytest.mark.nightly
@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_all_combinations(full: Prepared, case: Case) -> None:
    _check(full, case)


def _check(prepared: Prepared, case: Case) -> None:
    folder, jobs, expected = prepared
    outcome = run_case(folder, case, jobs)
    assert outcome.tokens == expected
    assert_exercised(case, jobs, outcome)
